"""Rewrites patterns of torch.onnx to forms that ONNX Runtime computes in fewer passes over the activations.

The operators are standard ones before and after. Logits are the same to the last bit, except for the root mean square,
which is rounded once less. docs/benchmarks.md has the speedups. A pass that finds no pattern changes nothing.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.exporters.passes.edit import Edit, constant

_LOWEST = np.finfo(np.float32).min


def rewrites() -> list[Edit]:
    """List the rewrites, in any order; they run after `ReadPositionPass`, which needs shapes that they drop."""
    return [FiniteMaskPass(), KeyTransposePass(), FixedSizesPass(), GeluPass(), RootMeanSquarePass()]


class _RewritePass(ir.passes.InPlacePass):
    """Applies a rule to each node."""

    what = ""

    def __init__(self) -> None:
        super().__init__()
        self.rewritten = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.rewritten} {self.what}"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rule to all nodes."""
        for node in list(model.graph):
            self.rewritten += self.rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified=self.rewritten > 0)

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Rewrite the pattern that ends in a node; returns whether there was one."""
        raise NotImplementedError


class FiniteMaskPass(_RewritePass):
    """Mask attention with the lowest finite number instead of -inf, so that no row of a Softmax is NaN.

    Requires: nothing.
    Ensures: a row with a visible key is unchanged, since the exponential of a masked score is still 0. A row without a
        visible key, which is padding that nothing reads, becomes the mean of all values instead of 0.
    """

    what = "attentions masked with the lowest number, their tests for NaN dropped"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Write Where(IsNaN(probabilities), 0, probabilities) as probabilities."""
        if node.op_type != "Where":
            return False
        probabilities = node.inputs[2]
        softmax, is_nan = _made_by(probabilities, "Softmax"), _made_by(node.inputs[0], "IsNaN")
        if probabilities is None or softmax is None or is_nan is None or is_nan.inputs[0] is not probabilities:
            return False
        scores = _made_by(softmax.inputs[0], "Add")
        masks = [] if scores is None else [mask for value in scores.inputs if (mask := _mask(value)) is not None]
        if len(masks) != 1:
            return False
        if "mask.lowest" not in graph.initializers:
            constant(graph, "mask.lowest", _LOWEST)
        masks[0].replace_input_with(2, graph.initializers["mask.lowest"])
        ir.convenience.replace_all_uses_with(node.outputs[0], probabilities)
        return True


def _mask(value: ir.Value | None) -> ir.Node | None:
    """Find the node that makes a mask of 0 and -inf, or the lowest number, before any gather of the read position."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Transpose", "GatherND"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    masked = None if node is None else mask_of(node)
    return node if masked is not None and masked <= _LOWEST else None


def mask_of(node: ir.Node) -> float | None:
    """Return what masks a score, if a node makes a mask of 0 and one negative number."""
    if node.op_type != "Where":
        return None
    visible, masked = _constant(node.inputs[1]), _constant(node.inputs[2])
    if visible is None or masked is None or visible.any() or masked.size != 1 or masked.item() >= 0:
        return None
    return float(masked.item())


class KeyTransposePass(_RewritePass):
    """Swap the last two axes of keys directly, without the two Reshapes that keep ONNX Runtime from fusing the swap.

    Requires: nothing.
    Ensures: the same elements, in one Transpose together with the one that puts heads before positions.
    """

    what = "keys transposed once"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Write [b, h, s, d] -> [b x h, s, d] -> [b x h, d, s] -> [b, h, d, s] without the two in between."""
        swap = _made_by(node.inputs[0], "Transpose") if node.op_type == "Reshape" else None
        before = None if swap is None else _made_by(swap.inputs[0], "Reshape")
        if swap is None or before is None or list(swap.attributes["perm"].as_ints()) != [0, 2, 1]:
            return False
        keys = before.inputs[0]
        if keys is None or keys.shape is None or len(keys.shape) != 4:
            return False
        if _axes(before.inputs[1], keys) != [None, 2, 3] or _axes(node.inputs[1], keys) != [0, 1, 3, 2]:
            return False
        transposed = ir.node("Transpose", [keys], attributes={"perm": [0, 1, 3, 2]})
        _replace(graph, node, transposed)
        return True


def _axes(sizes: ir.Value | None, of: ir.Value) -> list[int | None]:
    """Find the axis of a value that each size is the size of; None: it is another number."""
    concat = _made_by(sizes, "Concat")
    axes: list[int | None] = []
    for value in () if concat is None else concat.inputs:
        part = _made_by(value, "Slice")
        shape = None if part is None else _made_by(part.inputs[0], "Shape")
        bounds = [] if part is None else [_constant(bound) for bound in part.inputs[1:3]]
        if shape is None or shape.inputs[0] is not of or shape.attributes.get_int("start", 0) != 0:
            axes.append(None)
        else:
            assert of.shape is not None
            start, end = (None if bound is None else int(bound.item()) for bound in bounds)
            axes += list(range(len(of.shape)))[start:end] if None not in (start, end) else [None]
    return axes


class FixedSizesPass(_RewritePass):
    """Replace computed sizes of a Reshape by constants.

    Requires: shapes are those of the trace.
    Ensures: 0 stands for a size that is unchanged, -1 for at most one that changes.
    """

    what = "Reshapes of constant sizes"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Write Reshape(value, [batch, sequence, 12, 32]) as Reshape(value, [0, 0, 12, 32])."""
        if node.op_type != "Reshape" or _constant(node.inputs[1]) is not None or node.inputs[0] is None:
            return False
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if before is None or after is None or 0 in after:
            return False
        sizes = [
            size if isinstance(size, int) else 0 if i < len(before) and _same(size, before[i]) else -1
            for i, size in enumerate(after)
        ]
        if sizes.count(-1) > 1:
            return False
        name = f"sizes.{'.'.join(map(str, sizes))}"
        if name not in graph.initializers:
            constant(graph, name, np.array(sizes, dtype=np.int64))
        node.replace_input_with(1, graph.initializers[name])
        node.attributes.pop("allowzero", None)
        return True


def _same(one: ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Return whether two sizes are known to be equal; sizes without a name are not."""
    return one.value is not None and one == other


class GeluPass(_RewritePass):
    """Multiply GELU's factors in the order that ONNX Runtime fuses into one operator, with the bias before it.

    Requires: nothing.
    Ensures: the same numbers, since halving is exact.
    """

    what = "GELUs halved last"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Write x * (0.5 * (erf(..) + 1)) as (x * (erf(..) + 1)) * 0.5."""
        if node.op_type != "Mul":
            return False
        for value, factor in (node.inputs, node.inputs[::-1]):
            product = _made_by(factor, "Mul")
            for half, other in () if product is None else (product.inputs, product.inputs[::-1]):
                number, added = _constant(half), _made_by(other, "Add")
                if number is None or number.shape or number != 0.5 or added is None:
                    continue
                if any(_made_by(term, "Erf") is not None for term in added.inputs):
                    whole = ir.node("Mul", [value, other])
                    whole.outputs[0].name = f"{node.outputs[0].name}.whole"
                    graph.insert_before(node, whole)
                    node.replace_input_with(0, whole.outputs[0])
                    node.replace_input_with(1, half)
                    return True
        return False


class RootMeanSquarePass(_RewritePass):
    """Divide by a root mean square, the form that ONNX Runtime fuses into one norm operator.

    Requires: nothing.
    Ensures: the same up to rounding: one division instead of a reciprocal and a product.
    """

    what = "divisions by a root instead of products with its reciprocal"

    def rewrite(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Write x * (1 / sqrt(..)) as x / sqrt(..)."""
        if node.op_type != "Mul":
            return False
        for value, factor in (node.inputs, node.inputs[::-1]):
            reciprocal = _made_by(factor, "Reciprocal")
            root = None if reciprocal is None else reciprocal.inputs[0]
            if _made_by(root, "Sqrt") is not None:
                _replace(graph, node, ir.node("Div", [value, root]))
                return True
        return False


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    graph.insert_before(node, new)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
