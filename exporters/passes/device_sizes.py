"""Makes sizes that meet tensors on the tensors' device, so that no run copies one there."""

import numpy as np
import onnx_ir as ir

from ptexport.exporters.passes.edit import constant
from ptexport.exporters.passes.read_position import ELEMENTWISE

_MEETS = ELEMENTWISE | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Max", "Min", "Mod"}
_OF_SIZES = frozenset(("Squeeze", "Unsqueeze", "Gather", "Slice", "Concat", "Reshape", "Cast", "Identity"))


class DeviceSizesPass(ir.passes.InPlacePass):
    """Write tensor + size as tensor + Range(size, size + 1), and so with other operators.

    ONNX Runtime reads shapes on the CPU. A size that meets a tensor on a GPU, such as the number of past keys that is
    added to positions, is copied there in each run, and a graph with a copy cannot be recorded as a CUDA graph. Range
    takes its limits on the CPU and writes on the GPU.

    Requires: shapes are those of the trace.
    Ensures: the same numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[ir.Value, ir.Value] = {}
        self._one: ir.Value | None = None

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        return f"{len(self.made)} sizes made where they are used"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the sizes that meet tensors."""
        sizes: set[ir.Value] = set()
        for node in list(model.graph):
            given = [value for value in node.inputs if value is not None]
            others = [value for value in given if value not in sizes and not _is_constant(value)]
            if node.op_type == "Shape" or (not others and node.op_type in _OF_SIZES | _MEETS):
                sizes.update(node.outputs)
            elif node.op_type in _MEETS and all(value.shape is not None and value.shape for value in others):
                for number, value in enumerate(node.inputs):
                    whole = value is not None and value.dtype == ir.DataType.INT64
                    if value in sizes and value is not None and whole and value.shape == ir.Shape([]):
                        node.replace_input_with(number, self._range(model.graph, node, value))
        return ir.passes.PassResult(model, modified=bool(self.made))

    def _range(self, graph: ir.Graph, node: ir.Node, size: ir.Value) -> ir.Value:
        if size not in self.made:
            if self._one is None:
                self._one = constant(graph, "device_sizes.one", np.array(1, dtype=np.int64))
            one = self._one
            end = ir.node("Add", [size, one])
            made = ir.node("Range", [size, end.outputs[0], one])
            for new, name, shape in ((end, "end", []), (made, "range", [1])):
                new.outputs[0].name, new.outputs[0].dtype = f"{size.name}.{name}", ir.DataType.INT64
                new.outputs[0].shape = ir.Shape(shape)
                graph.insert_before(node, new)
            self.made[size] = made.outputs[0]
        return self.made[size]


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")
