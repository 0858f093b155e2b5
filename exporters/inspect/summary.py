"""A baked graph -> its parts, and the FLOPs of one row; knows graphs, nothing of files or printing."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from ptexport.exporters.inspect.parts import Flow, PartName, Place, constants_by_place, order, tensor_of

LENGTH = 128
"""Tokens of the counted row, at most the bundle's maximum: some sentences, in which attention costs a little."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a model: its constants and the cost of its products.

    Attributes:
        name: name of the part; "head" is between the last layer and the label weights, such as BERT's transform;
            "other" is scalars, shapes and the like.
        layer: number of the layer, from 0; None: not in a layer. Weights that layers share count for the first layer.
        parameters: number of elements.
        size_bytes: size of the elements as stored.
        flops: FLOPs of its products for one row of `GraphSummary.length` tokens; a multiplication and addition are two.
    """

    name: PartName
    layer: int | None
    parameters: int
    size_bytes: int
    flops: int


class GraphSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts and cost of a graph. FLOPs count products (MatMul, Gemm, Attention), next to which all else is small.

    Attributes:
        inputs: sizes by the input's name; a string is a size that a batch chooses.
        outputs: sizes by the output's name.
        operators: number of nodes by operator, the largest first.
        parts: parts in the order of the graph.
        layers: number of layers.
        length: tokens of the counted row, without folded tokens.
        flops: FLOPs of that row; None: some sizes are unknown (see `unknown`).
        flops_per_token: `flops` divided by `length`.
        score_flops: the part of `flops` for attention scores and weighted values, which grows with the square of
            `length`.
        saved_flops: FLOPs that computing the last layer for one position saves.
        unknown: operators with sizes that onnx cannot infer.
    """

    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    operators: dict[str, int]
    parts: list[Part]
    layers: int
    length: int
    flops: int | None
    flops_per_token: float | None
    score_flops: int | None
    saved_flops: int | None
    unknown: list[str]


def summarize_graph(model: ir.Model, length: int) -> GraphSummary:
    """Find the parts of a graph and their cost.

    Args:
        model: a graph without shapes of intermediate values; it is modified.
        length: tokens of the counted row.
    """
    for value in list(model.graph.inputs):
        if value.const_value is not None:  # an overridable initializer is counted with its default value
            model.graph.inputs.remove(value)
            value.shape = ir.Shape(value.const_value.shape.numpy())
    inputs, outputs = _sizes(model.graph.inputs), _sizes(model.graph.outputs)
    operators = dict(Counter(_kind(node) for node in model.graph.all_nodes()).most_common())
    flow = Flow(list(model.graph))
    constants = constants_by_place(flow)
    flops: Counter[Place] = Counter()
    scores = saved = 0
    nodes = {node: place for node, place in flow.places.items() if node.op_type != "Softmax"}
    counted = _count(model, list(nodes), length)
    for node, (n_flops, positions) in counted.items():
        place = nodes[node]
        flops[place] += n_flops
        scores += n_flops * (node not in flow.weights)
        saved += n_flops * (length - 1) * (positions == 1 and place.name in ("attention", "mlp"))
    known = len(counted) == len(nodes)
    places = sorted({*constants, *flops}, key=order)
    behind = [kind for kind in operators if "::" in kind] or [node.op_type for node in nodes if node not in counted]
    return GraphSummary(
        inputs=inputs,
        outputs=outputs,
        operators=operators,
        parts=[_part(place, constants.get(place, []), flops[place] if known else 0) for place in places],
        layers=flow.n_layers,
        length=length,
        flops=sum(flops.values()) if known else None,
        flops_per_token=sum(flops.values()) / length if known else None,
        score_flops=scores if known else None,
        saved_flops=saved if known else None,
        unknown=[] if known else sorted(set(behind)),
    )


def _part(place: Place, constants: Sequence[ir.Value], flops: int) -> Part:
    return Part(
        name=place.name,
        layer=place.layer,
        parameters=sum(_parameters(value) for value in constants),
        size_bytes=sum(tensor_of(value).nbytes for value in constants),
        flops=flops,
    )


def _count(model: ir.Model, nodes: Sequence[ir.Node], length: int) -> dict[ir.Node, tuple[int, int]]:
    """Count the FLOPs and positions of products; products of unknown sizes are left out."""
    for value in model.graph.inputs:
        value.shape = ir.Shape([1, length])
    stand_ins = {node: _as_matmul(model.graph, node) for node in nodes if node.op_type in _OURS}
    fold_constants(model, onnx_shape_inference=True)  # computed sizes become constants, so that shapes can be inferred
    counted = {}
    for node in nodes:
        try:
            counted[node] = _flops(stand_ins.get(node, node))
        except LookupError:
            continue
    return counted


def _flops(node: ir.Node) -> tuple[int, int]:
    if node.graph is None:  # folded into a constant
        return 0, 0
    left = _shape(node.inputs[0])
    if node.op_type == "Attention":
        past = node.inputs[4] if len(node.inputs) > 4 else None
        keys, values = _shape(node.inputs[1]), _shape(node.inputs[2])
        n_keys = keys[-2] + (0 if past is None else _shape(past)[-2])
        heads = 1 if len(left) == 3 else left[1]
        width = left[-1] + (values[-1] if len(left) == 4 else left[-1])
        return 2 * heads * left[-2] * n_keys * width, left[-2]
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1
    inner, positions = (left[-2], left[-1]) if transposed else (left[-1], left[-2])
    return 2 * math.prod(_shape(node.outputs[0])) * inner, positions


_OURS = ("MatMulNBits", "MatMulIntegerToFloat")
"""ONNX Runtime's own products, for which onnx cannot infer sizes."""


def _as_matmul(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replace a product for which onnx cannot infer sizes by a MatMul."""
    taken, packed = node.inputs[:2]
    if node.op_type == "MatMulNBits":
        size = [node.attributes["K"].as_int(), node.attributes["N"].as_int()]
    else:
        size = _shape(packed)
        floats = ir.node("Cast", [taken], attributes={"to": ir.DataType.FLOAT.value})
        floats.outputs[0].name, floats.outputs[0].dtype = f"{node.name}_floats", ir.DataType.FLOAT
        graph.insert_before(node, floats)
        taken = floats.outputs[0]
    weight = ir.Value(name=f"{node.name}_sizes", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(size))
    graph.inputs.append(weight)
    product = ir.node("MatMul", [taken, weight])
    graph.insert_after(node, product)
    product.outputs[0].name = f"{node.outputs[0].name}_sizes"
    product.outputs[0].dtype = ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0], replace_graph_outputs=True)
    graph.remove(node)
    return product


def _shape(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise LookupError("no shape")
    sizes = [size for size in value.shape if isinstance(size, int)]
    if len(sizes) < max(len(value.shape), 2):
        raise LookupError(value.name)
    return sizes


def _kind(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _parameters(value: ir.Value) -> int:
    """Count elements; MatMulNBits packs several into a byte."""
    for node, i in value.uses():
        if node.op_type == "MatMulNBits" and i == 1:
            return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    return tensor_of(value).size


def _sizes(values: Iterable[ir.Value]) -> dict[str, list[int | str]]:
    return {
        str(v.name): [n if isinstance(n, int) else str(n) for n in (() if v.shape is None else v.shape)] for v in values
    }
