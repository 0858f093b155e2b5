"""Products in int8, with one scale per row of activations; knows the graph, nothing of accuracy.

ONNX Runtime's dynamic quantization has one scale per batch, so that logits depend on the other rows of the batch. A
fixed range loses precision if some tokens are far larger than others. A scale per token has neither problem, and costs
a few passes over the activations (docs/precision.md has the latencies).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.exporters.passes.edit import MICROSOFT, constant

_LARGEST = np.float32(127)
_CONSTANTS: dict[str, NDArray[Any] | np.generic] = {
    "one": np.float32(1),
    "zero": np.uint8(128),  # activations are uint8 around 128, which x86 multiplies faster than int8
    "axis": np.array([-1], dtype=np.int64),
    "half": np.float32(0.5),
    "smallest": np.float32(1e-30),  # avoids a division by zero in a row of equal elements
    "per_step": 1 / (2 * _LARGEST),
}


class RowProductsPass(ir.passes.InPlacePass):
    """Compute products in int8, with one scale per column of weights and per row of activations.

    Requires: each product is a MatMul of float32 with a weight `[k, n]`.
    Ensures: each product is a MatMulIntegerToFloat; a value or weight of several products is quantized once. The result
        for a row depends on that row alone.

    Args:
        nodes: names of the products' nodes.
    """

    def __init__(self, nodes: Collection[str]) -> None:
        super().__init__()
        self.nodes = set(nodes)

    def requires(self, model: ir.Model) -> None:
        """Check that the nodes are products."""
        found = {
            node.name
            for node in model.graph
            if node.op_type == "MatMul" and (weight := node.inputs[1]) is not None and weight.const_value is not None
        }
        if not self.nodes <= found:
            raise ir.passes.PreconditionError(f"no products: {sorted(map(str, self.nodes - found))}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the products."""
        graph = model.graph
        of = {name: constant(graph, f"row.{name}", array) for name, array in _CONSTANTS.items()}
        taken: dict[ir.Value, Rounded] = {}
        weights: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        for node in [node for node in graph if node.name in self.nodes]:
            value, weight = node.inputs
            assert value is not None
            assert weight is not None
            if value not in taken:
                taken[value] = Rounded(value, of)
                graph.insert_before(node, taken[value].nodes)
            if weight not in weights:
                weights[weight] = _by_column(graph, weight)
            integers, steps, sums = weights[weight]
            row = taken[value]
            inputs = [row.integers, integers, of["one"], steps, of["zero"]]
            product = ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=node.name)
            scaled = ir.node("Mul", [product.outputs[0], row.step], name=f"{node.name}.scaled")
            shift = ir.node("Mul", [row.middle, sums], name=f"{node.name}.shift")
            shifted = ir.node("Add", [scaled.outputs[0], shift.outputs[0]], name=f"{node.name}.shifted")
            new = [product, scaled, shift, shifted]
            for one in new[:-1]:
                one.outputs[0].name = f"{one.name}.{node.outputs[0].name}"
            ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, shifted.outputs)
        for weight in weights:
            if not weight.uses():
                del graph.initializers[str(weight.name)]
        model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=bool(taken))


class Rounded:
    """A value `[..., k]` as uint8 around 128, row by row: `value = middle + step * (integers - 128)`.

    Attributes:
        nodes: nodes that compute it, in order.
        integers: uint8 [..., k].
        step: float32 [..., 1].
        middle: float32 [..., 1].
    """

    def __init__(self, value: ir.Value, of: Mapping[str, ir.Value]) -> None:
        self.nodes: list[ir.Node] = []
        self._name = value.name
        highest, lowest = (self._add(op_type, value, of["axis"]) for op_type in ("ReduceMax", "ReduceMin"))
        self.middle = self._add("Mul", self._add("Add", highest, lowest), of["half"])
        span = self._add("Max", self._add("Sub", highest, lowest), of["smallest"])
        self.step = self._add("Mul", span, of["per_step"])
        within = self._add("Div", self._add("Sub", value, self.middle), self.step)
        self.integers = self._add("QuantizeLinear", within, of["one"], of["zero"])

    def _add(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, inputs, name=f"{self._name}.row.{len(self.nodes)}")
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]


def _by_column(graph: ir.Graph, weight: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Store a weight [k, n] as int8 and steps [n]; also the column sums of the dequantized weight, [n]."""
    assert weight.const_value is not None
    floats = weight.const_value.numpy()
    steps = np.abs(floats).max(axis=0) / _LARGEST
    steps[steps == 0] = 1
    integers = np.round(floats / steps).astype(np.int8)
    sums = integers.sum(axis=0, dtype=np.int64).astype(np.float32) * steps
    stored = {"int8": integers, "step": steps, "sum": sums}
    whole, step, total = (constant(graph, f"{weight.name}.{name}", array) for name, array in stored.items())
    return whole, step, total
