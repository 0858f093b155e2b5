"""The edits made to a traced graph, one onnx_ir pass each; they know the graph, nothing of files or tasks."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class BindInputsPass(ir.passes.InPlacePass):
    """Give inputs values: what a task brings becomes part of the graph.

    An initializer that stays an input is a default value. ONNX Runtime does not list it among the inputs, and takes
    another in its place at run time: tasks that differ in nothing else can share a session. TensorRT needs constants.

    Requires: every name is an input, of the array's dtype, rank and fixed sizes.
    Ensures: each is an initializer, and an input only if it is to be overridable.

    Args:
        arrays: by the input's name.
        overridable: whether callers may give others at run time.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]], *, overridable: bool = False) -> None:
        super().__init__()
        self.arrays = arrays
        self.overridable = overridable

    @property
    def did(self) -> str:
        """What the manifest says."""
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"{shapes} made {'default values' if self.overridable else 'constant'}"

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
            value.const_value = ir.tensor(array, name=value.name)
            if not self.overridable:  # else the symbolic sizes stay, which another task's may differ from
                model.graph.inputs.remove(value)
                value.shape = ir.Shape(array.shape)
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=bool(self.arrays))

    def ensures(self, model: ir.Model) -> None:
        """Check that each array became an initializer, and that what must be constant is."""
        left = {value.name for value in model.graph.inputs} & set(self.arrays)
        if left != (set(self.arrays) if self.overridable else set()) or not set(self.arrays) <= set(
            model.graph.initializers
        ):
            raise ir.passes.PostconditionError(f"inputs with a value: {sorted(map(str, left))}")
