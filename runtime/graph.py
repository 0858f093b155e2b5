"""model.onnx -> logits for ids, with ONNX Runtime; knows sessions and threads, nothing of texts or labels."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.cpus import available_cpus
from ptexport.runtime.errors import MissingExtraError
from ptexport.runtime.tokens import Ids

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError("ONNX Runtime is not installed; pip install 'ptexport[cpu]' or 'ptexport[gpu]'") from e
    return onnxruntime  # type: ignore[no-any-return]


class Graph:
    """An ONNX classifier, loaded. Thread-safe: ONNX Runtime's `run` is."""

    def __init__(self, session: "InferenceSession") -> None:
        self._session = session
        self.inputs = [value.name for value in session.get_inputs()]

    @classmethod
    def open(cls, model: Path, *, threads: int | None = None) -> "Graph":
        """Load a graph on the CPU.

        Args:
            model: the file, with its weights beside it.
            threads: CPUs to use; None: those this process may use.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
        """
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # SmolLM2, peak while opening over its weights file: 1.07 without the arena, 1.22 with it; runs take as long.
        options.enable_cpu_mem_arena = False
        return cls(onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]))

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Score ids as they are, float32 [b, c]; inputs that the graph does not take are left out."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {name: ids[name] for name in self.inputs})[0]
        return logits
