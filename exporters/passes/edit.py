"""The protocol of passes, and how they are applied; knows the graph, nothing of files or tasks."""

from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.runtime.bundle.manifest import PassEntry
from ptexport.runtime.errors import ExportError, reason


class Edit(Protocol):
    """A pass that describes its changes."""

    @property
    def did(self) -> str:
        """One sentence for the manifest."""

    def __call__(self, model: ir.Model, /) -> ir.passes.PassResult:
        """Edit a model in place."""


def edit(model: ir.Model, *passes: Edit) -> list[PassEntry]:
    """Apply passes in order; returns the manifest's entries.

    Raises:
        ExportError: the graph does not meet a pass's requirement.
    """
    for pass_ in passes:
        try:
            pass_(model)
        except ir.passes.PreconditionError as e:
            raise ExportError(f"{type(pass_).__name__}: {reason(e)}; not supported, please report the model") from e
    return [PassEntry(name=type(pass_).__name__.removesuffix("Pass"), did=pass_.did) for pass_ in passes]


MICROSOFT = "com.microsoft"


def constant(graph: ir.Graph, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
    """Register an initializer."""
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape)
    )
    graph.register_initializer(value)
    return value
