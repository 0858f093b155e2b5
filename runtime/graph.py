"""model.onnx -> logits for ids, with ONNX Runtime; knows sessions and threads, nothing of texts or labels."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.cpus import available_cpus
from ptexport.runtime.errors import MissingExtraError
from ptexport.runtime.onnx_file import OnnxFile
from ptexport.runtime.sessions import SharedSession, shared_session
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

    def __init__(
        self,
        session: "InferenceSession",
        arrays: Mapping[str, NDArray[np.float32]] | None = None,
        shared: SharedSession | None = None,
    ) -> None:
        self._session = session
        self._arrays = dict(arrays or {})
        self._shared = shared  # held, so that the next graph of its key finds it
        self.inputs = [value.name for value in session.get_inputs()]

    @classmethod
    def open(cls, model: Path, *, threads: int | None = None, weights_sha256: str | None = None) -> "Graph":
        """Load a graph on the CPU.

        Args:
            model: the file, with its weights beside it.
            threads: CPUs to use; None: those this process may use.
            weights_sha256: of the weights file, which was verified: the session is shared with every graph that has the
                same weights, threads and frame, and this task's arrays are given to each run. None: a session of its
                own.

        Raises:
            BundleError: the file is no ONNX model.
            MissingExtraError: ONNX Runtime is not installed.
        """
        threads = threads or available_cpus()
        if weights_sha256 is None:
            return cls(_load(model, threads))
        file = OnnxFile.parse(model.read_bytes(), str(model))
        shared = shared_session((weights_sha256, file.frame_sha256, threads))
        return cls(shared.load(lambda: _load(model, threads)), file.arrays, shared)

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Score ids as they are, float32 [b, c]; inputs that the graph does not take are left out."""
        given = {name: ids[name] for name in self.inputs}
        logits: NDArray[np.float32] = self._session.run(["logits"], given | self._arrays)[0]
        return logits


def _load(model: Path, threads: int) -> "InferenceSession":
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # SmolLM2, peak while opening over its weights file: 1.07 without the arena, 1.22 with it; runs take as long.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
