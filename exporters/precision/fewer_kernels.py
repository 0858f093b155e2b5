"""Edits after which a graph in half precision launches fewer kernels on a GPU, and computes the same.

They make up for the casts where half precision begins and ends. A graph in half precision has a weights file of its
own; in fp32 all bundles of a backbone share one, so products are not joined there.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.exporters.passes.edit import constant

_MOVES = frozenset(("Unsqueeze", "Transpose", "GatherND"))


class JoinProductsPass(ir.passes.InPlacePass):
    """Multiply a value with several weights at once, as queries, keys and values do, and split the product.

    Requires: all floats are float32.
    Ensures: the same sums; products whose values are too large for half precision stay apart.

    Args:
        apart: names of values whose products are not joined.
    """

    def __init__(self, apart: Collection[str] = ()) -> None:
        super().__init__()
        self.apart = frozenset(apart)
        self.joined = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.joined} products joined with others of the same input"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join products where that saves a kernel."""
        groups: dict[tuple[ir.Value, int], list[list[ir.Node]]] = defaultdict(list)
        for node in model.graph:
            if node.op_type != "MatMul" or node.inputs[0] is None or _weight(node, rank=2) is None:
                continue
            nodes = [node, *_bias_of(node)]
            values = {value for own in nodes for value in (*own.inputs, *own.outputs) if value is not None}
            if not self.apart.intersection(value.name for value in values):
                groups[node.inputs[0], len(nodes)].append(nodes)
        for (source, kinds), products in groups.items():
            if len(products) * kinds > kinds + 1:  # what replaces them: one of each kind, and a Split
                self._join(model.graph, source, products)
        return ir.passes.PassResult(model, modified=self.joined > 0)

    def _join(self, graph: ir.Graph, source: ir.Value, products: list[list[ir.Node]]) -> None:
        first, name, value = products[0][0], f"joined.{self.joined}", source
        widths: list[int] = []
        for alike in zip(*products, strict=True):  # the products, then their biases
            arrays = [_array(weight) for node in alike if (weight := _weight(node)) is not None]
            widths = [array.shape[-1] for array in arrays]
            kind = alike[0].op_type
            whole = constant(graph, f"{name}.{kind}.weight", np.concatenate(arrays, axis=-1))
            value = _insert(graph, first, ir.node(kind, [value, whole]), [f"{name}.{kind}"])[0]
        sizes = constant(graph, f"{name}.widths", np.array(widths, dtype=np.int64))
        split = ir.node("Split", [value, sizes], attributes={"axis": -1}, num_outputs=len(products))
        parts = _insert(graph, first, split, [f"{nodes[-1].outputs[0].name}.part" for nodes in products])
        for nodes, part in zip(products, parts, strict=True):
            ir.convenience.replace_all_uses_with(nodes[-1].outputs[0], part)
            graph.remove(nodes[::-1], safe=True)
        self.joined += len(products)


class RotationSignPass(ir.passes.InPlacePass):
    """Rotate with a signed sine instead of negated queries and keys.

    Write concat(-b, a) * sin([x, x]) as concat(b, a) * sin([-x, x]): a rotary angle is negated once for all layers. The
    cosine of a negated angle is the same.

    Requires: nothing.
    Ensures: the same numbers, since a sine is odd; nothing changes unless every use of the angles is of this form.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rotations = 0

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.rotations} rotations without a negation"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Negate angles instead of activations."""
        for sine in [node for node in model.graph if node.op_type == "Sin"]:
            angles = None if sine.inputs[0] is None else sine.inputs[0].producer()
            if angles is None or angles.op_type != "Concat" or len(angles.inputs) != 2:
                continue
            if angles.inputs[0] is not angles.inputs[1] or not _only_sine_and_cosine(angles):
                continue
            negations = [_negation(node, value) for node, value in _ends(sine.outputs[0])]
            found = [negation for negation in negations if negation is not None]
            if not found or len(found) < len(negations):
                continue
            negated = ir.node("Neg", [angles.inputs[0]])
            angles.replace_input_with(0, _insert(model.graph, angles, negated, [f"{sine.name}.negated"])[0])
            for negation in found:
                (given,) = negation.inputs
                assert given is not None
                ir.convenience.replace_all_uses_with(negation.outputs[0], given)
            self.rotations += len(found)
        return ir.passes.PassResult(model, modified=self.rotations > 0)


def _only_sine_and_cosine(angles: ir.Node) -> bool:
    return sorted(use.node.op_type for use in angles.outputs[0].uses()) == ["Cos", "Sin"]


def _ends(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Find the nodes that use a value, behind those that move or scale it."""
    for use in value.uses():
        others = [given for given in use.node.inputs if given is not None and given is not value]
        scales = (
            use.node.op_type == "Mul" and len(others) == 1 and ir.convenience.get_const_tensor(others[0]) is not None
        )
        if use.node.op_type in _MOVES or scales:
            yield from _ends(use.node.outputs[0])
        else:
            yield use.node, value


def _negation(node: ir.Node, sine: ir.Value) -> ir.Node | None:
    """Find the Neg in concat(Neg(b), a) * sine, if nothing else uses it."""
    others = [given for given in node.inputs if given is not sine]
    concat = others[0].producer() if node.op_type == "Mul" and len(others) == 1 and others[0] is not None else None
    while concat is not None and concat.op_type in _MOVES and concat.inputs[0] is not None:
        concat = concat.inputs[0].producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2 or concat.inputs[0] is None:
        return None
    negation = concat.inputs[0].producer()
    alone = negation is not None and negation.op_type == "Neg" and len(negation.outputs[0].uses()) == 1
    return negation if alone and len(concat.outputs[0].uses()) == 1 else None


def _bias_of(product: ir.Node) -> list[ir.Node]:
    """Find the Add of a constant that alone uses a product."""
    users = [use.node for use in product.outputs[0].uses()]
    return users if len(users) == 1 and users[0].op_type == "Add" and _weight(users[0], rank=1) is not None else []


def _weight(node: ir.Node, rank: int | None = None) -> ir.Value | None:
    """Find the constant operand of a product or an Add: one that nothing else uses, and no task brings."""
    for value in node.inputs[1:] if node.op_type == "MatMul" else node.inputs:
        if value is not None and value.is_initializer() and not value.is_graph_input() and len(value.uses()) == 1:
            tensor = value.const_value
            return value if tensor is not None and rank in (None, len(tensor.shape)) else None
    return None


def _array(weight: ir.Value) -> NDArray[np.float32]:
    assert weight.const_value is not None
    return weight.const_value.numpy()


def _insert(graph: ir.Graph, before: ir.Node, node: ir.Node, names: list[str]) -> list[ir.Value]:
    for value, name in zip(node.outputs, names, strict=True):
        value.name, value.dtype = name, ir.DataType.FLOAT
    graph.insert_before(before, node)
    return list(node.outputs)
