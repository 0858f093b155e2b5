"""The edits made to a traced graph, one onnx_ir pass each; they know the graph, nothing of files or tasks."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ptexport.runtime.errors import ExportError, reason
from ptexport.runtime.manifest import PassEntry


class Edit(Protocol):
    """A pass that can say what it did."""

    @property
    def did(self) -> str:
        """One sentence, for the manifest."""

    def __call__(self, model: ir.Model, /) -> ir.passes.PassResult:
        """Edit a model in place."""


def edit(model: ir.Model, *passes: Edit) -> list[PassEntry]:
    """Apply passes in order; returns what each did.

    Raises:
        ExportError: the graph is not as a pass needs it.
    """
    for pass_ in passes:
        try:
            pass_(model)
        except ir.passes.PreconditionError as e:
            raise ExportError(f"{type(pass_).__name__}: {reason(e)}; not supported, please report the model") from e
    return [PassEntry(name=type(pass_).__name__.removesuffix("Pass"), did=pass_.did) for pass_ in passes]


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


class ForgetIntermediateShapesPass(ir.passes.InPlacePass):
    """Drop the shapes that the trace wrote on intermediate values.

    They name the sizes of inputs that baking makes constants; ONNX Runtime infers them again when it loads the graph.

    Requires: nothing.
    Ensures: no value but the graph's own inputs, outputs and constants has a shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    @property
    def did(self) -> str:
        """What the manifest says."""
        return f"shapes of {self.dropped} values dropped"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them."""
        outputs = set(model.graph.outputs)
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value not in outputs and value.shape is not None:
                    value.shape = None
                    self.dropped += 1
        return ir.passes.PassResult(model, modified=self.dropped > 0)


class DeadCodePass(ir.passes.InPlacePass):
    """Remove nodes and constants that no output needs.

    Requires: nothing.
    Ensures: what is left reaches an output; the weights file keeps its bytes, which bundles of a backbone share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    @property
    def did(self) -> str:
        """What the manifest says."""
        return f"{self.removed} nodes removed"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them."""
        before = len(model.graph)
        modified = RemoveUnusedNodesPass()(model).modified
        self.removed = before - len(model.graph)
        return ir.passes.PassResult(model, modified=modified)
