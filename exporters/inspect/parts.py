"""A baked graph -> the part of the model that each node and constant belongs to; without shapes or names.

Names are not enough: the trace folds a weight and its transpose into `val_12`. So parts follow from the use of values.
A layer is the nodes around one softmax (or Attention node). A product with a constant is a weight. Its part follows
from whether it precedes a softmax, follows one, or is between two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

PartName = Literal[
    "embeddings",
    "prompt embeddings",
    "prefix key/values",
    "attention",
    "mlp",
    "norms",
    "head",
    "label weights",
    "other",
]

_OF_TASK: dict[str, PartName] = {
    "prompt_embeddings": "prompt embeddings",
    "label_weights": "label weights",
    "label_bias": "label weights",
    "prefix_kv": "prefix key/values",
    "prefix_mask": "prefix key/values",
}
_PRODUCTS = frozenset(("MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"))
_RANGES = frozenset(("ReduceMax", "ReduceMin"))
"""Operators that find the range of a row, by which products in integers are scaled; they bypass the weights."""
_ATTENTION = frozenset(("Attention", "Softmax"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))


@dataclass(frozen=True, slots=True)
class Place:
    """The part of the model that a node or constant belongs to; layers are numbered from 0."""

    name: PartName
    layer: int | None = None


class Flow:
    """The data flow of a graph, and the parts that follow from it.

    Attributes:
        nodes: nodes in the graph's order.
        sources: for each value that no input changes, the constants that it is computed from.
        weights: products with a constant.
        places: parts of all products and attention nodes.
        n_layers: number of softmaxes.
    """

    def __init__(self, nodes: Sequence[ir.Node]) -> None:
        self.nodes = nodes
        self.sources: dict[ir.Value, list[ir.Value]] = {}
        for node in nodes:
            given = _given(node)
            if all(self.is_constant(value) for value in given):
                constants = list(dict.fromkeys(source for value in given for source in self.sources_of(value)))
                self.sources.update(dict.fromkeys(node.outputs, constants))
        moving = [node for node in nodes if not all(map(self.is_constant, node.outputs))]
        products = [node for node in moving if node.op_type in _PRODUCTS]
        self.weights = {node for node in products if any(map(self.is_constant, _given(node)[:2]))}
        self._softmaxes = {node: i for i, node in enumerate(n for n in moving if n.op_type in _ATTENTION)}
        self.n_layers = len(self._softmaxes)
        self._states: set[ir.Value] = set()  # values computed from looked-up embeddings
        self._from_softmax: dict[ir.Value, int] = {}  # the last softmax before a value, with no weight in between
        for node in moving:
            if self.looks_up(node) or not self._states.isdisjoint(_given(node)):
                self._states.update(node.outputs)
            before = [self._from_softmax[value] for value in _given(node) if value in self._from_softmax]
            if node in self._softmaxes:
                before = [self._softmaxes[node]]
            if before and node not in self.weights and node.op_type not in _RANGES:
                self._from_softmax.update(dict.fromkeys(node.outputs, max(before)))
                if node in products:  # the product with the values, after the softmax itself
                    self._softmaxes[node] = max(before)
        self._to_softmax: dict[ir.Value, int] = {}  # the first softmax after a value, with no weight in between
        self._next_softmax: dict[ir.Value, int] = {}  # the same, with or without a weight in between
        self._next_weight: dict[ir.Value, ir.Node] = {}
        for node in reversed(moving):
            self._look_ahead(node)
        self.places = self._find(products)

    def is_constant(self, value: ir.Value) -> bool:
        """Return whether no input changes a value."""
        return value in self.sources or value.const_value is not None

    def sources_of(self, value: ir.Value) -> list[ir.Value]:
        """Return the constants that a value is computed from."""
        return self.sources.get(value, [value] if value.const_value is not None else [])

    def looks_up(self, node: ir.Node) -> bool:
        """Return whether a node looks up rows of a table."""
        table = node.inputs[0] if node.op_type == "Gather" else None
        tensors = [] if table is None else [tensor_of(source) for source in self.sources_of(table)]
        return any(len(tensor.shape) == 2 and tensor.dtype.is_floating_point() for tensor in tensors)

    def is_state(self, node: ir.Node) -> bool:
        """Return whether a node computes on embeddings or hidden states, and not on masks or positions."""
        return node.outputs[0] in self._states

    def next_place(self, node: ir.Node) -> Place | None:
        """Return the part of the next weight after a node."""
        weight = self._next_weight.get(node.outputs[0])
        return None if weight is None else self.places[weight]

    def _is_of_labels(self, node: ir.Node) -> bool:
        return any(source.name == "label_weights" for value in _given(node) for source in self.sources_of(value))

    def _look_ahead(self, node: ir.Node) -> None:
        """Record for a node's inputs the softmax and weight that follow."""
        if node.op_type in _RANGES:
            return
        own = self._softmaxes.get(node)
        later = [self._next_softmax[v] for v in node.outputs if v in self._next_softmax] if own is None else [own]
        straight = [self._to_softmax[v] for v in node.outputs if v in self._to_softmax] if own is None else [own]
        weights = [self._next_weight[v] for v in node.outputs if v in self._next_weight]
        if node in self.weights:
            straight, weights = [], [node]
        for value in _given(node):
            for known, found in ((self._next_softmax, later), (self._to_softmax, straight)):
                if found:
                    known[value] = min(*found, known.get(value, found[0]))
            if weights:
                self._next_weight[value] = weights[0]  # the first in the graph, since nodes are visited from its end

    def _find(self, products: Sequence[ir.Node]) -> dict[ir.Node, Place]:
        places = {node: Place("attention", layer) for node, layer in self._softmaxes.items()}
        tail = []
        for node in products:
            value = node.outputs[0]
            before = [self._from_softmax[v] for v in _given(node) if v in self._from_softmax]
            if self._is_of_labels(node):
                places[node] = Place("label weights")
            elif value in self._to_softmax:
                places[node] = Place("attention", self._to_softmax[value])
            elif before:
                places[node] = Place("attention", max(before))
            elif node not in self.weights:
                places[node] = Place("other")
            elif value not in self._next_softmax:
                tail.append(node)
            elif self._next_softmax[value] == 0:
                places[node] = Place("embeddings")
            else:
                places[node] = Place("mlp", self._next_softmax[value] - 1)
        # Only the number of products, the same in all layers, separates the last MLP from a head after it.
        n_mlp = sum(place == Place("mlp", 0) for place in places.values()) if self.n_layers > 1 else len(tail)
        for i, node in enumerate(tail):
            places[node] = Place("mlp", self.n_layers - 1) if i < n_mlp else Place("head")
        return places


def place_of_nodes(flow: Flow) -> dict[str, Place]:
    """Find each node's part, by the node's name.

    A node that is not a weight, attention or norm, such as a bias, a rotation or an activation, belongs to the weight
    or norm before it; a node that rounds to integers belongs to the weight after it. A node that does not compute on
    hidden states, such as for masks, positions and prefix key/values, is "other" in no layer.
    """
    found: dict[str, Place] = {}
    latest: dict[ir.Value, tuple[int, Place]] = {}  # for each value, the last node before it with a part of its own
    for number, node in enumerate(flow.nodes):
        place = flow.places.get(node)
        if place is None and flow.is_state(node):
            before = [latest[value] for value in _given(node) if value in latest]
            if flow.looks_up(node):
                place = Place("embeddings")
            elif _begins_norm(node):
                behind = flow.next_place(node)
                place = Place("norms", None if behind is None else behind.layer)
            elif node.op_type in _RANGES:
                place = flow.next_place(node)
            elif before:
                number, place = max(before, key=lambda known: known[0])
        if place is not None:
            latest.update(dict.fromkeys(node.outputs, (number, place)))
        if node.name:
            found[node.name] = place or Place("other")
    return found


def _begins_norm(node: ir.Node) -> bool:
    """Return whether a node is a norm, or the mean or square that a decomposed norm begins with."""
    behind = {user.op_type for user, _ in node.outputs[0].uses()}
    return node.op_type in (*_NORMS, "ReduceMean") or (node.op_type in ("Pow", "Mul") and behind == {"ReduceMean"})


def constants_by_place(flow: Flow) -> dict[Place, list[ir.Value]]:
    """Find each constant's part by its first use."""
    found: dict[ir.Value, Place] = {}
    for node in flow.nodes:
        for i, value in enumerate(node.inputs):
            if value is None or not flow.is_constant(value) or all(map(flow.is_constant, node.outputs)):
                continue
            for source in flow.sources_of(value):
                of_task = _OF_TASK.get(str(source.name))
                found.setdefault(source, Place(of_task) if of_task else _place_of_use(flow, node, i, source))
    parts: dict[Place, list[ir.Value]] = {}
    for source, place in found.items():
        if source.is_initializer():
            parts.setdefault(place, []).append(source)
    return parts


def _place_of_use(flow: Flow, node: ir.Node, i: int, source: ir.Value) -> Place:
    if node in flow.places and node.op_type != "Softmax":
        return flow.places[node]
    if i == 0 and flow.looks_up(node):
        return Place("embeddings")
    if node.op_type == "Add":  # a bias, if the other side is a product
        makers = [value.producer() for value in _given(node)]
        places = [flow.places[maker] for maker in makers if maker is not None and maker in flow.weights]
        if places:
            return places[0]
    scale = node.op_type == "Mul" and flow.is_state(node) and len(tensor_of(source).shape) == 1
    if node.op_type in _NORMS or scale:
        behind = flow.next_place(node)
        return Place("norms", None if behind is None else behind.layer)
    return Place("other")


def _given(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a constant."""
    assert value.const_value is not None
    return value.const_value


def order(place: Place) -> tuple[int, int, int]:
    """Return a sort key in the order of the graph: parts before the layers, layers, parts after them."""
    number = get_args(PartName).index(place.name)
    return (0 if number < 3 else 1 if place.layer is not None else 2), place.layer or 0, number
