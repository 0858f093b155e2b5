"""A baked graph -> what it is made of and what a row of it costs; knows graphs, nothing of files or printing."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from ptexport.exporters.inspect.parts import Flow, PartName, Place, constants_by_place, order, tensor_of

LENGTH = 128
"""Tokens of the row that is counted, or the bundle's most if fewer: some sentences, where attention counts a little."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of one purpose, and the products they or their layer's attention take part in.

    Attributes:
        name: what it is; "head" is what stands between the last layer and the label rows, as BERT's transform; "other"
            scalars, shapes and the like.
        layer: its number, from 0; None where it is in none. Weights that layers share are the first one's.
        parameters: numbers it holds.
        size_bytes: of those, as stored.
        flops: of its products for one row of `GraphSummary.length` tokens, two to a multiplication and addition.
    """

    name: PartName
    layer: int | None
    parameters: int
    size_bytes: int
    flops: int


class GraphSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a graph is made of. FLOPs are those of products (MatMul, Gemm, Attention); all else is small beside them.

    Attributes:
        inputs: sizes by name; a word is a size that a batch chooses.
        outputs: likewise.
        operators: nodes by kind, the most first.
        parts: in the order of the graph.
        layers: how many.
        length: tokens of the row that is counted, the folded ones not among them.
        flops: of that row; None: sizes are unknown behind `unknown`.
        flops_per_token: of the same, by its tokens.
        score_flops: of those, queries by keys and weights by values, which alone grow with the square of the length.
        saved_flops: that the same row would take more if all positions went through all of the last layer.
        unknown: kinds of nodes that onnx cannot tell the sizes of, if any.
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
    """Say what a graph is made of and what it costs.

    Args:
        model: without shapes on intermediate values; changed on the way, so load it for this alone.
        length: tokens of the row to count.
    """
    for value in list(model.graph.inputs):
        if value.const_value is not None:  # a default value is what counts
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
    """Count FLOPs of products, and of how many positions each is; those of unknown sizes are left out."""
    for value in model.graph.inputs:
        value.shape = ir.Shape([1, length])
    stand_ins = {node: _as_matmul(model.graph, node) for node in nodes if node.op_type in _OURS}
    fold_constants(model, onnx_shape_inference=True)  # sizes that are computed become numbers, and shapes follow
    counted = {}
    for node in nodes:
        try:
            counted[node] = _flops(stand_ins.get(node, node))
        except LookupError:
            continue
    return counted


def _flops(node: ir.Node) -> tuple[int, int]:
    if node.graph is None:  # folded away: a constant after all
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
"""ONNX Runtime's own products, whose sizes onnx cannot tell."""


def _as_matmul(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Put a plain product in the place of one whose sizes onnx cannot tell."""
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
    """Count numbers; several of a MatMulNBits are packed in a byte."""
    for node, i in value.uses():
        if node.op_type == "MatMulNBits" and i == 1:
            return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    return tensor_of(value).size


def _sizes(values: Iterable[ir.Value]) -> dict[str, list[int | str]]:
    return {
        str(v.name): [n if isinstance(n, int) else str(n) for n in (() if v.shape is None else v.shape)] for v in values
    }
