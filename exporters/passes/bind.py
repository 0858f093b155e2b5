"""Binds task arrays to the inputs of a traced graph; knows the graph, nothing of files or tasks."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class BindInputsPass(ir.passes.InPlacePass):
    """Turn inputs into initializers with given values.

    An initializer that is an input too can be overridden: ONNX Runtime accepts another array at run time, so that tasks
    that differ only in these arrays can share a session. TensorRT needs constants instead.

    Requires: every name is an input with the array's dtype, rank and fixed sizes.
    Ensures: each is an initializer, and still an input only if it is overridable.

    Args:
        arrays: task arrays by the input's name.
        overridable: whether callers may pass other arrays at run time.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.float32]], *, overridable: bool = False) -> None:
        super().__init__()
        self.arrays = arrays
        self.overridable = overridable

    @property
    def did(self) -> str:
        """One sentence for the manifest."""
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"{shapes} made {'overridable initializers' if self.overridable else 'constant'}"

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
            if not self.overridable:  # else the symbolic sizes stay: another task's arrays may have other sizes
                model.graph.inputs.remove(value)
                value.shape = ir.Shape(array.shape)
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=bool(self.arrays))

    def ensures(self, model: ir.Model) -> None:
        """Check that each array is an initializer, overridable or constant as chosen."""
        left = {value.name for value in model.graph.inputs} & set(self.arrays)
        if left != (set(self.arrays) if self.overridable else set()) or not set(self.arrays) <= set(
            model.graph.initializers
        ):
            raise ir.passes.PostconditionError(f"inputs with a value: {sorted(map(str, left))}")
