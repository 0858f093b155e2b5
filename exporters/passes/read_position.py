"""Computes the last layer for the read position alone, except keys and values.

The trace gathers the hidden state of the read position after the last layer. Positions interact only in attention, and
there only through keys and values. So the gather can move before the last layer's MLP, output projection and queries.
It moves node by node, by one rule per operator; if there is no rule it stays, which is correct and saves less.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf", "Relu", "Gelu")
ELEMENTWISE = frozenset((*_ARITHMETIC, "IsNaN", "Where", "Cast", "Identity"))

Dim = int | str | None
Wanted = dict[int, int]  # number of an input -> the axis of which only the read position is needed


class ReadPositionPass(ir.passes.InPlacePass):
    """Move the gather of the read position up through the last layer.

    Requires: the graph gathers one position of `[batch, sequence, width]`; intermediate shapes are those of the trace.
    Ensures: a node that is used at the read position only computes that position alone; weights are unchanged.

    Attributes:
        moved: number of nodes that the gather moved before.
        stopped: operators of the nodes that the gathers follow now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0
        self.stopped: list[str] = []

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{self.moved} nodes compute the read position alone; it is gathered after {', '.join(self.stopped)}"

    def requires(self, model: ir.Model) -> None:
        """Check that the graph gathers a position."""
        if _gather(model) is None:
            raise ir.passes.PreconditionError("the graph gathers no position of [batch, sequence, width]")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the gather."""
        gather = _gather(model)
        assert gather is not None
        states, expanded = _inputs(gather)
        expand = expanded.producer()
        assert expand is not None
        (index, *_) = _inputs(expand)  # [batch, 1, 1]
        shapes = _Shapes()
        axes: dict[ir.Value, int] = {states: 1}
        uses: dict[ir.Value, list[tuple[ir.Node, int]]] = {states: [(gather, 0)]}
        for node in reversed(list(model.graph)):
            value = node.outputs[0]
            if value not in axes:
                continue
            alone = len(node.outputs) == 1 and set(map(tuple, value.uses())) == set(uses[value])
            source = _around_gemm(node) if node.op_type == "Reshape" else node
            try:
                wanted = _RULES[node.op_type](node, axes[value], shapes) if alone else None
                operands = {_inputs(source)[i]: axis for i, axis in (wanted or {}).items()}
                fits = all(axes.get(v, at) == at and shapes(v)[0] == shapes(states)[0] for v, at in operands.items())
            except LookupError:  # no rule, or no shape
                continue
            if wanted is None or not fits:
                continue
            if node.op_type == "Reshape":
                _reshape_to_one(node, shapes)
            self.moved += 1
            del axes[value], uses[value]
            for i, axis in wanted.items():
                operand = _inputs(source)[i]
                axes[operand] = axis
                uses.setdefault(operand, []).append((source, i))
        for value, users in uses.items():
            picked = _pick(model.graph, value, index, axes[value], len(shapes(value)))
            for user, i in users:
                if user is not gather:
                    user.replace_input_with(i, picked)
            producer = value.producer()
            self.stopped.append(str(value.name) if producer is None else producer.op_type)
            if value is states:
                states = picked
        ir.convenience.replace_all_uses_with(gather.outputs[0], states)
        model.graph.sort()
        return ir.passes.PassResult(model, modified=True)


def _gather(model: ir.Model) -> ir.Node | None:
    for node in reversed(list(model.graph)):
        if node.op_type == "GatherElements" and node.inputs[0] is not None:
            shape, made = node.inputs[0].shape, node.inputs[1]
            expands = made is not None and made.producer() is not None
            return node if shape is not None and len(shape) == 3 and expands else None
    return None


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _pick(graph: ir.Graph, value: ir.Value, index: ir.Value, axis: int, rank: int) -> ir.Value:
    """Gather each row's read position: [batch, .., sequence, ..] -> [batch, .., 1, ..]."""

    def add(kind: str, inputs: list[ir.Value], attributes: dict[str, int | list[int]]) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes)
        node.outputs[0].name = f"{value.name}_{kind}_{len(graph)}"
        if value.dtype is not None:
            node.outputs[0].dtype = value.dtype
        graph.append(node)
        return node.outputs[0]

    first = [0, axis, *(i for i in range(1, rank) if i != axis)]
    moved = value if axis == 1 else add("Transpose", [value], {"perm": first})
    taken = add("GatherND", [moved, index], {"batch_dims": 1})
    return taken if axis == 1 else add("Transpose", [taken], {"perm": [first.index(i) for i in range(rank)]})


class _Shapes:
    """Shapes of the trace, and inferred ones where torch.onnx wrote none; raises LookupError if unknown."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, list[Dim]] = {}

    def __call__(self, value: ir.Value) -> list[Dim]:
        if value not in self._known:
            self._known[value] = self._find(value)
        return self._known[value]

    def _find(self, value: ir.Value) -> list[Dim]:
        if value.shape is not None:
            return [size if isinstance(size, int) else str(size) for size in value.shape]
        node = value.producer()
        if node is None:
            raise LookupError(value.name)
        if node.op_type in ELEMENTWISE:
            shapes = [self(operand) for operand in _inputs(node)]
            longest = max(shapes, key=len)
            return [
                next(
                    (s[i - len(longest)] for s in shapes if len(longest) - i <= len(s) and s[i - len(longest)] != 1), 1
                )
                for i in range(len(longest))
            ]
        if node.op_type == "Softmax":
            return self(_inputs(node)[0])
        if node.op_type == "MatMul":
            return [*self(_inputs(node)[0])[:-1], None]
        raise LookupError(value.name)


def _elementwise(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    rank = len(shapes(node.outputs[0]))
    wanted = {}
    for i, operand in enumerate(_inputs(node)):
        shape = shapes(operand)
        own = axis - (rank - len(shape))
        if own >= 0 and shape[own] != 1:
            wanted[i] = own
    return wanted


def _matmul(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    """Rows of the left operand are rows of the product."""
    rank = len(shapes(node.outputs[0]))
    return {0: axis} if axis == rank - 2 == len(shapes(_inputs(node)[0])) - 2 else None


def _last_axis(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    """Norms and Softmax compute each position by itself."""
    rank = len(shapes(_inputs(node)[0]))
    given = node.attributes.get_int("axis", -1)
    return {0: axis} if given in (-1, rank - 1) and axis < rank - 1 else None


def _other_axes(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    """ReduceMean and Slice along other axes keep this one."""
    rank = len(shapes(_inputs(node)[0]))
    given = ir.convenience.get_const_tensor(_inputs(node)[1 if node.op_type == "ReduceMean" else 3])
    if given is None or node.attributes.get_int("keepdims", 1) != 1:
        return None
    axes = [int(i) % rank for i in given.numpy()]
    return None if axis in axes or not axes else {0: axis}  # no axes: along all


def _transpose(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    return {0: node.attributes["perm"].as_ints()[axis]}


def _concat(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    rank = len(shapes(node.outputs[0]))
    along = node.attributes["axis"].as_int() % rank
    return None if along == axis else dict.fromkeys(range(len(node.inputs)), axis)


def _attention(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    """Queries and the mask have an axis of query positions; `is_causal` would align one query with the first key."""
    given = _inputs(node)
    is_causal = node.attributes.get_int("is_causal", 0)
    if axis != 2 or len(given) != 4 or is_causal or len(shapes(given[0])) != 4:
        return None
    mask = shapes(given[3])
    return ({0: 2, 3: 2} if mask[2] != 1 else {0: 2}) if len(mask) == 4 else None


def _reshape(node: ir.Node, axis: int, shapes: _Shapes) -> Wanted | None:
    """Reshapes that split or join heads, or that flatten batch and sequence around a Gemm and restore them."""
    source, out = shapes(_inputs(_around_gemm(node))[0]), shapes(node.outputs[0])
    others = all(isinstance(size, int) for size in out[2:])
    return {0: 1} if axis == 1 and _splits(node, source) and source[:2] == out[:2] and others else None


def _splits(node: ir.Node, source: list[Dim]) -> bool:
    return len(source) == 3 if _around_gemm(node) is not node else len(source) > 2


def _around_gemm(node: ir.Node) -> ir.Node:
    """Return the Reshape that flattens batch and sequence, if this one restores them; else this one."""
    gemm = _inputs(node)[0].producer()
    if gemm is None or gemm.op_type != "Gemm" or len(gemm.outputs[0].uses()) != 1:
        return node
    before = _inputs(gemm)[0].producer()
    if before is None or before.op_type != "Reshape" or len(before.outputs[0].uses()) != 1:
        return node
    return node if gemm.attributes.get_int("transA", 0) else before


def _reshape_to_one(node: ir.Node, shapes: _Shapes) -> None:
    """Set the shape to one position."""
    first = _around_gemm(node)
    sizes = {node: [-1, 1, *shapes(node.outputs[0])[2:]]}
    if first is not node:
        sizes[first] = [-1, shapes(_inputs(first)[0])[-1]]
    for reshape, size in sizes.items():
        name = f"{reshape.outputs[0].name}_shape"
        shape = ir.Value(name=name, const_value=ir.tensor(np.array(size, dtype=np.int64), name=name))
        shape.shape, shape.dtype = ir.Shape([len(size)]), ir.DataType.INT64
        assert node.graph is not None
        node.graph.register_initializer(shape)
        reshape.replace_input_with(1, shape)


_RULES: dict[str, Callable[[ir.Node, int, _Shapes], Wanted | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "Softmax"), _last_axis),
    **dict.fromkeys(("ReduceMean", "Slice"), _other_axes),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Concat": _concat,
    "Attention": _attention,
    "Reshape": _reshape,
}
