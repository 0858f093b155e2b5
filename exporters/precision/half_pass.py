"""A float32 graph -> the same in half precision, float16 or bfloat16, where that is safe; knows no model by name.

Products, embedding lookups and the nodes that move or join their results are computed in half precision. So are
LayerNormalization, RMSNormalization and Softmax, whose kernels in ONNX Runtime take and give half precision and compute
in float32 inside, and cosines and sines, which are cast once for all layers. These stay in float32: norms that are
written out, up to their division, since ONNX Runtime makes them one kernel on a GPU; positions, and the angles
themselves; values that were too large for float16 on the check rows; and the label weights with all nodes after them.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ptexport.exporters.passes.edit import constant
from ptexport.exporters.passes.ort_rewrites import mask_of

LARGEST_FLOAT16 = 65504.0 / 4
"""Largest magnitude on the check rows of a value in float16; the factor leaves room for other rows."""

LOWEST = np.float32(-(2**13))
"""What masks a score in half precision: exp(LOWEST) is 0, and no score that is added to it overflows float16."""

_PRODUCTS = frozenset(("MatMul", "Gemm", "Attention"))
_SENSITIVE = frozenset(("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Cast"))
_MOVES = frozenset(
    ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Gather", "GatherND", "Slice", "Split", "Concat", "Expand")
)
_TABLES = ("prompt_embeddings", "prefix_kv")
_HEAD = ("label_weights", "label_bias")


class HalfMaskPass(ir.passes.InPlacePass):
    """Mask attention with a number that half precision holds.

    Requires: no score is as large as half of `LOWEST`.
    Ensures: the same probabilities, since the exponential of a masked score is still 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.masks} masks of {LOWEST:g}"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the lowest number, or -inf, in each mask."""
        masks = [node for node in model.graph if (mask_of(node) or 0) < LOWEST]
        lowest = constant(model.graph, "mask.half", LOWEST) if masks else None
        for node in masks:
            node.replace_input_with(2, lowest)
        self.masks = len(masks)
        return ir.passes.PassResult(model, modified=bool(masks))


class HalfPass(ir.passes.InPlacePass):
    """Compute in half precision.

    Requires: all floats are float32.
    Ensures: inputs and outputs are unchanged; weights of products and lookups are in half precision, task arrays in
        float32; no value is cast twice.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        too_large: names of values that stay float32, with the nodes that produce and use them.

    Attributes:
        nodes: number of nodes that compute in half precision.
    """

    def __init__(self, dtype: ir.DataType, too_large: Collection[str] = ()) -> None:
        super().__init__()
        self.dtype = dtype
        self.too_large = frozenset(too_large)
        self.nodes = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        large = f"; {len(self.too_large)} values stay float32 for their size" if self.too_large else ""
        return f"{self.nodes} nodes compute in {self.dtype.name.lower()}{large}"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose the precision of each node, and insert casts."""
        half = choose_half(model, self.too_large, float32_norms=self.dtype == ir.DataType.FLOAT16)
        casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node in list(model.graph):
            if all(value.dtype != ir.DataType.FLOAT for value in node.outputs) and len(node.inputs) == 1:
                continue  # Shape and IsNaN take either
            dtype = self.dtype if node in half else ir.DataType.FLOAT
            for number, value in enumerate(node.inputs):
                if value is None or value.dtype not in (ir.DataType.FLOAT, self.dtype) or value.dtype == dtype:
                    continue
                if (value, dtype) not in casts:
                    casts[value, dtype] = _cast(model.graph, node, value, dtype)
                node.replace_input_with(number, casts[value, dtype])
            if node in half:
                for value in node.outputs:
                    value.dtype = dtype
        self.nodes = len(half)
        return ir.passes.PassResult(model, modified=self.nodes > 0)


def choose_half(model: ir.Model, too_large: Collection[str] = (), *, float32_norms: bool = True) -> set[ir.Node]:
    """Find the nodes that may compute in half precision; infers and stores missing types.

    Args:
        model: all floats are float32.
        too_large: names of values that stay float32.
        float32_norms: whether a norm of half precision may write float32: ONNX Runtime has no such kernel for bfloat16.
    """
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    graph = model.graph
    head = {graph.initializers[name] for name in _HEAD}
    activations = {graph.initializers[name] for name in _TABLES if name in graph.initializers}
    half: set[ir.Node] = set()
    in_half = {graph.initializers[name] for name in ("prefix_kv",) if name in graph.initializers}
    angles: set[ir.Value] = set()
    for node in graph:
        given = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        counted = [value for value in given if value not in activations and not _is_constant(value)]
        floats = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        large = any(value is not None and value.name in too_large for value in (*node.inputs, *node.outputs))
        moved = [value for value in given if value in activations]
        if node.op_type in ("Sin", "Cos") or (counted and not moved and angles.issuperset(counted)):
            angles.update(floats)
            if node.op_type in _MOVES and not large:
                half.add(node)
        looks_up = node.op_type == "Gather" and _is_constant(node.inputs[0]) and bool(given)
        starts = looks_up or is_half_mask(node) or any(_divides_by_root(value.producer()) for value in given)
        if starts or activations.intersection(given):
            activations.update(node.outputs)
        if head.intersection(given):
            head.update(node.outputs)
            continue
        product = node.op_type in _PRODUCTS and bool(moved)
        follows = bool(in_half.intersection(moved))
        apart = large or not angles.issuperset(counted) or node.op_type in _SENSITIVE or _divides_by_root(node)
        if floats and (product or starts or follows) and not apart:
            half.add(node)
            in_half.update(floats)
    for node in reversed(graph):  # the last norm writes float32 itself
        users = {user for value in node.outputs for user, _ in value.uses()}
        norm = any(_divides_by_root(None if value is None else value.producer()) for value in node.inputs)
        if node in half and users and not users & half and (node.op_type in _MOVES or (norm and float32_norms)):
            half.remove(node)
    return half


def is_half_mask(node: ir.Node) -> bool:
    """Whether a node makes a mask of 0 and `LOWEST`."""
    return mask_of(node) == LOWEST


def _divides_by_root(node: ir.Node | None) -> bool:
    """Whether a node is the division of a norm: a GPU runs the norm as one kernel if it is cast after that."""
    root = node.inputs[1].producer() if node and node.op_type == "Div" and node.inputs[1] is not None else None
    return root is not None and root.op_type == "Sqrt"


def _is_constant(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return value is not None and (
        value.const_value is not None or (producer is not None and producer.op_type == "Constant")
    )


def _cast(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Cast a value before its first use; a weight is stored in the new type."""
    name = f"{value.name}.{dtype.name.lower()}"
    if value.is_initializer() and value.name not in _TABLES:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(dtype.numpy())
        stored = ir.tensor(array, dtype=dtype, name=name)
        weight = ir.Value(name=name, const_value=stored, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
        graph.register_initializer(weight)
        return weight
    cast = ir.node("Cast", [value], attributes={"to": dtype.value})
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, dtype, value.shape
    graph.insert_before(node, cast)
    return cast.outputs[0]
