"""model.onnx -> logits for ids, with ONNX Runtime; knows sessions and threads, nothing of texts or labels."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.ort.batch_shapes import CPU_BATCH_TOKENS, MAX_BATCH_TOKENS, Buckets
from ptexport.runtime.ort.cpus import available_cpus, quota_cpus
from ptexport.runtime.ort.io_binding import BufferPool, Buffers, Ids, Shape
from ptexport.runtime.ort.providers import (
    CPU,
    Provider,
    load_onnxruntime,
    open_session,
)
from ptexport.runtime.ort.shared_session import SharedSession, shared_session

_KEPT = 8  # buffers of batches as they come, whose shapes are many
_KEPT_OF_BUCKETS = 256  # more than there are shapes


class Graph:
    """An ONNX classifier, loaded. Thread-safe: ONNX Runtime's `run` is, and each run has buffers of its own.

    Attributes:
        session: an InferenceSession.
        provider: what it runs on.
        threads: CPUs it uses.
        inputs: names of the ids that it takes.
        buckets: shapes that batches are padded to; None: none are.
        batch_tokens: what a batch of more rows than one should hold at most, padding counted.
    """

    def __init__(
        self,
        session: Any,
        arrays: Mapping[str, NDArray[np.float32]] | None = None,
        shared: SharedSession | None = None,
        *,
        provider: Provider | None = None,
        threads: int = 1,
        buckets: Buckets | None = None,
    ) -> None:
        from onnxruntime import OrtValue

        self.session = session
        self.provider = provider or Provider()
        self.threads = threads
        self.inputs = [value.name for value in session.get_inputs()]
        self.buckets = buckets
        self.batch_tokens = MAX_BATCH_TOKENS if buckets else CPU_BATCH_TOKENS
        self._shared = shared  # held, so that the next graph of its key finds it
        device = (self.provider.device_type, self.provider.device)
        values = {name: OrtValue.ortvalue_from_numpy(array, *device) for name, array in (arrays or {}).items()}
        recorded = self.provider.cuda_graph
        make = partial(Buffers, session, self.inputs, values, device)
        self._pool = BufferPool(make, recorded=recorded, kept=_KEPT_OF_BUCKETS if buckets else _KEPT)
        # What a thread recorded it alone plays back.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ptexport-cuda-graph") if recorded else None

    @classmethod
    def open(
        cls,
        model: Path,
        *,
        provider: Provider | None = None,
        threads: int | None = None,
        buckets: Buckets | None = None,
    ) -> "Graph":
        """Load a graph in a session of its own.

        Args:
            model: the file, with its weights beside it.
            provider: execution provider; None: the CPU.
            threads: CPUs to use; None: all that this process may use.
            buckets: shapes that batches are padded to; ignored on the CPU.

        Raises:
            ProviderError: the provider does not run the graph.
            MissingExtraError: ONNX Runtime is not installed.
        """
        threads, provider = threads or available_cpus(), provider or Provider()
        session = _load(model, threads, provider)
        return cls(session, provider=provider, threads=threads, buckets=_usable(buckets, provider))

    @classmethod
    def open_shared(
        cls,
        model: Path,
        file: OnnxFile,
        weights_sha256: str,
        *,
        provider: Provider,
        threads: int | None,
        buckets: Buckets,
    ) -> "Graph":
        """Load a graph in the session of all graphs with the same weights, frame, provider and threads.

        This task's arrays are passed to each run.

        Args:
            model: the file, with its weights beside it.
            file: its parsed content.
            weights_sha256: verified hash of the weights file.
            provider: execution provider.
            threads: CPUs to use; None: all that this process may use.
            buckets: shapes that batches are padded to; ignored on the CPU.

        Raises:
            ProviderError: the provider does not run the graph.
            MissingExtraError: ONNX Runtime is not installed.
        """
        threads = threads or available_cpus()
        shared = shared_session((weights_sha256, file.frame_sha256, threads, provider))
        session = shared.load(lambda: _load(model, threads, provider))
        usable = _usable(buckets, provider)
        return cls(session, file.arrays, shared, provider=provider, threads=threads, buckets=usable)

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Score ids, float32 [b, c]; inputs that the graph does not take are left out.

        Raises:
            DataError: they are more or longer than the shapes that batches are padded to.
        """
        rows, tokens = ids["input_ids"].shape
        shape = (rows, tokens) if self.buckets is None else self.buckets.fit(rows, tokens)
        if self._thread is not None:
            return self._thread.submit(self._run, shape, ids).result()
        return self._run(shape, ids)

    def _run(self, shape: Shape, ids: Ids) -> NDArray[np.float32]:
        buffers = self._pool.take(shape)
        try:
            return buffers.run(ids)
        finally:
            self._pool.give_back(shape, buffers)

    def warm_up(self) -> None:
        """Run every shape that batches are padded to."""
        for shape in self.buckets.shapes() if self.buckets else ():
            ids = {name: np.zeros(shape, dtype=np.int64) for name in self.inputs}
            ids["attention_mask"] = np.ones(shape, dtype=np.int64)
            self.run(ids)


def session_options(threads: int, provider: Provider) -> Any:
    """Choose what every session of ours is opened with, as an onnxruntime.SessionOptions."""
    options = load_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Weights stay out of the arena, which what runs need is taken from: 8 x 28 tokens take a tenth longer without one
    # in fp32, and a third in int8, since large blocks are had from the kernel anew each time.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Planning which values share memory takes time with the square of the nodes, 3.6 of 4.5 s of SmolLM2 in int8. In
    # batches of ours, CPU_BATCH_TOKENS, runs without such a plan are as quick and hold no more, thanks to the arena.
    options.enable_mem_reuse = provider.name != CPU
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if quota_cpus() is None else "0")
    # Where a CPU's fast product of uint8 and int8 may overflow (AVX2 without VNNI), take the exact one.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _load(model: Path, threads: int, provider: Provider) -> Any:
    return open_session(str(model), session_options(threads, provider), provider)


def _usable(buckets: Buckets | None, provider: Provider) -> Buckets | None:
    """Keep the buckets where each shape of batch has a cost of its own."""
    return buckets if provider.device_type != "cpu" else None
