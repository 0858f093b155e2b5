"""The edits made to a traced graph, one onnx_ir pass each; they know the graph, nothing of files or tasks."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class BindInputsPass(ir.passes.InPlacePass):
    """Turn inputs into constants: what a task brings becomes part of the graph.

    Requires: every name is an input, of the array's dtype, rank and fixed sizes.
    Ensures: none is an input any more, each is an initializer.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.arrays = arrays

    def requires(self, model: ir.Model) -> None:
        """Check that the arrays fit the inputs."""
        inputs = {value.name: value for value in model.graph.inputs}
        for name, array in self.arrays.items():
            if name not in inputs:
                raise ir.passes.PreconditionError(f"the graph has no input {name!r}, only {sorted(map(str, inputs))}")
            shape = inputs[name].shape
            assert shape is not None  # torch.onnx always writes one
            fits = len(shape) == array.ndim and all(
                not isinstance(size, int) or size == got for size, got in zip(shape, array.shape, strict=True)
            )
            if not fits or array.dtype != np.float32:
                raise ir.passes.PreconditionError(f"{name}: got {array.dtype} {list(array.shape)}, need FLOAT {shape}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bind the arrays."""
        for value in [value for value in model.graph.inputs if value.name in self.arrays]:
            array = np.ascontiguousarray(self.arrays[str(value.name)])
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=bool(self.arrays))

    def ensures(self, model: ir.Model) -> None:
        """Check that each array became an initializer and stopped being an input."""
        left = {value.name for value in model.graph.inputs} & set(self.arrays)
        if left or not set(self.arrays) <= set(model.graph.initializers):
            raise ir.passes.PostconditionError(f"still inputs: {sorted(map(str, left))}")


class ForgetIntermediateShapesPass(ir.passes.InPlacePass):
    """Drop the shapes that the trace wrote on intermediate values.

    They name the sizes of inputs that baking makes constants; ONNX Runtime infers them again when it loads the graph.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them."""
        modified = False
        outputs = set(model.graph.outputs)
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value not in outputs and value.shape is not None:
                    value.shape = None
                    modified = True
        return ir.passes.PassResult(model, modified=modified)
