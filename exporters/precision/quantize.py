"""A baked graph -> the same with products in integers; knows onnxruntime.quantization, nothing of rows or accuracy.

A product is a MatMul with a weight. Its recipe is how it is computed:

    row          weights int8 by column; activations uint8, with one scale per row (MatMulIntegerToFloat)
    int8-blocks  weights int8 in blocks of 32; activations int8 in blocks of 32 (MatMulNBits)
    int4-blocks  weights int4 in blocks of 32; activations int8 in blocks of 32 (MatMulNBits)
    range        weights int8 by column; activations int8, by the range on the check rows (standard operators, Q/DQ)
    fp32         unchanged
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ptexport.exporters.passes.edit import constant
from ptexport.exporters.precision.row_pass import RowProductsPass

Recipe = Literal["row", "int8-blocks", "int4-blocks", "range", "fp32"]
BLOCK = 32
BITS: dict[Recipe, int] = {"int8-blocks": 8, "int4-blocks": 4}

_OP_TYPES = ["MatMul"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A MatMul with a weight.

    Attributes:
        node: name of the node.
        taken: name of the value that is multiplied by the weight.
        weight: name of the parameter.
    """

    node: str
    taken: str
    weight: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The smallest and the largest element of a value."""

    lowest: float
    highest: float

    def joined(self, array: NDArray[np.float32]) -> "Range":
        """Extend the range to the elements of an array."""
        return Range(lowest=min(self.lowest, float(array.min())), highest=max(self.highest, float(array.max())))


def find_products(model: ir.Model) -> list[Product]:
    """List a graph's products, in order; without that of the label weights, which are transposed and stay float32."""
    found = []
    for node in model.graph:
        taken, weight = (*node.inputs, None, None)[:2]
        if node.op_type == "MatMul" and taken is not None and weight is not None and weight.const_value is not None:
            name = str(weight.name).removesuffix(".T")
            found.append(Product(node=str(node.name), taken=str(taken.name), weight=name))
    return found


def quantize(path: Path, recipes: Mapping[str, Recipe], ranges: Mapping[str, Range]) -> ir.Model:
    """Compute products in integers.

    Args:
        path: the graph, with its weights beside it.
        recipes: recipes by the name of the product's node.
        ranges: ranges of the values that `range` products multiply, by the value's name.

    Returns:
        The graph; the weights of other products stay in the file beside `path`.
    """
    proto = onnx.load(path, load_external_data=False)
    theirs = {node for node, recipe in recipes.items() if recipe not in ("fp32", "row")}
    apart = _take_apart(proto, theirs, path.parent)
    nodes = {recipe: [node for node, own in recipes.items() if own == recipe] for recipe in set(recipes.values())}
    if "range" in nodes:
        proto = _by_ranges(proto, nodes["range"], ranges)
    for recipe, bits in BITS.items():
        if recipe in nodes:
            proto = _in_blocks(proto, nodes[recipe], bits)
    names = {tensor.name for tensor in apart}
    for given in [given for given in proto.graph.input if given.name in names]:
        proto.graph.input.remove(given)
    proto.graph.initializer.extend(apart)
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    model.graph.sort()  # what was inserted stands at the end
    if "row" in nodes:
        RowProductsPass(nodes["row"])(model)
    return model


def _by_ranges(proto: onnx.ModelProto, nodes: list[str], ranges: Mapping[str, Range]) -> onnx.ModelProto:
    data = {
        name: TensorData(lowest=np.float32(seen.lowest), highest=np.float32(seen.highest))
        for name, seen in ranges.items()
    }
    # Each product has its own Q/DQ pair, else other users of the same value would get it rounded. ONNX Runtime merges
    # equal pairs when it loads the graph.
    options = {"DedicatedQDQPair": True, "OpTypesToExcludeOutputQuantization": _OP_TYPES}
    quantizer = QDQQuantizer(
        proto,
        True,  # one scale per column of weights
        False,
        QuantType.QInt8,
        QuantType.QInt8,  # symmetric, as TensorRT needs them
        TensorsData(CalibrationMethod.MinMax, data),
        nodes,
        [],
        _OP_TYPES,
        {**options, "ActivationSymmetric": True},
    )
    quantizer.quantize_model()
    done: onnx.ModelProto = quantizer.model.model
    return done


def _in_blocks(proto: onnx.ModelProto, nodes: list[str], bits: int) -> onnx.ModelProto:
    quantizer_class = _nbits_quantizer()
    # accuracy_level 4: activations are int8, with scales per row, so that rows do not depend on each other
    quantizer = quantizer_class(
        proto, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4, nodes_to_include=nodes
    )
    quantizer.process()
    done: onnx.ModelProto = quantizer.model.model
    return done


def _nbits_quantizer() -> Any:
    """Import the quantizer, and undo its change to the root logger, which would print messages of all libraries."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    root.setLevel(before[0])
    root.handlers[:] = before[1]
    return MatMulNBitsQuantizer


def _take_apart(proto: onnx.ModelProto, nodes: set[str], folder: Path) -> list[onnx.TensorProto]:
    """Read the weights of some products, and make inputs of the others, since the quantizers copy all weights."""
    wanted = {node.input[1] for node in proto.graph.node if node.name in nodes}
    apart = []
    for tensor in [tensor for tensor in proto.graph.initializer if uses_external_data(tensor)]:
        if tensor.name in wanted:
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        else:
            apart.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
            proto.graph.initializer.remove(tensor)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return apart


class SplitGemmPass(ir.passes.InPlacePass):
    """Replace each Gemm, such as GPT-2's, by a MatMul and an Add, since recipes are for MatMul.

    Requires: nothing.
    Ensures: only those Gemm are left that transpose or scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.split = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.split} Gemm replaced by MatMul and Add"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split them."""
        for node in list(model.graph):
            scaled = any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta"))
            turned = any(node.attributes.get_int(name, 0) for name in ("transA", "transB"))
            if node.op_type != "Gemm" or scaled or turned:
                continue
            (out,) = node.outputs
            product = ir.node("MatMul", node.inputs[:2], name=node.name)
            product.outputs[0].name = f"{out.name}.product"
            new = [product]
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                new.append(ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}.bias"))
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, [out], new[-1].outputs)
            self.split += 1
        return ir.passes.PassResult(model, modified=self.split > 0)


class ByteTablePass(ir.passes.InPlacePass):
    """Store the embedding table in int8, with one scale per 32 elements of a row.

    Requires: one Gather looks tokens up in `table.weight`.
    Ensures: embeddings are float32, and each element differs by at most 1/254 of its block's largest; prompt
        embeddings, which are in another table, are unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"embedding table of {self.rows} rows in int8"

    def requires(self, model: ir.Model) -> None:
        """Check that there is a table."""
        table = model.graph.initializers.get("table.weight")
        if table is None or [node.op_type for node, _ in table.uses()] != ["Gather"]:
            raise ir.passes.PreconditionError("need one Gather that looks up in table.weight")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Store it."""
        graph = model.graph
        table = graph.initializers.pop("table.weight")
        assert table.const_value is not None
        self.rows, width = table.const_value.shape.numpy()
        blocks = table.const_value.numpy().reshape(self.rows, -1, BLOCK if width % BLOCK == 0 else width)
        scales = np.abs(blocks).max(axis=2, keepdims=True) / 127
        scales[scales == 0] = 1
        constants = {
            "table.weight.int8": np.round(blocks / scales).astype(np.int8),
            "table.weight.scale": scales,
            "table.weight.shape": np.array([0, 0, width], dtype=np.int64),  # 0: as it is
        }
        whole, scale, shape = (constant(graph, name, array) for name, array in constants.items())
        ((node, _),) = table.uses()
        numbers, factors = (ir.node("Gather", [part, node.inputs[1]]) for part in (whole, scale))
        floats = ir.node("Cast", numbers.outputs, attributes={"to": ir.DataType.FLOAT.value})
        scaled = ir.node("Mul", [*floats.outputs, *factors.outputs])
        row = ir.node("Reshape", [*scaled.outputs, shape])
        new = [numbers, factors, floats, scaled, row]
        for part in new[:-1]:
            part.outputs[
                0
            ].name = f"{node.outputs[0].name}.{part.op_type}.{part.inputs[0].name if part.inputs[0] else ''}"
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, row.outputs)
        return ir.passes.PassResult(model, modified=True)
