"""Ids -> logits, with model.onnx in ONNX Runtime."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.engine_model import TENSORRT_RTX
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.batch_shapes import (
    CPU_BATCH_TOKENS,
    CUDA_BATCH_ROWS,
    MAX_BATCH_ROWS,
    MAX_BATCH_TOKENS,
    Buckets,
)
from ptexport.runtime.ort.cpus import available_cpus, quota_cpus
from ptexport.runtime.ort.io_binding import BufferPool, Buffers, Ids, Shape
from ptexport.runtime.ort.providers import (
    CPU,
    CUDA,
    Provider,
    load_onnxruntime,
    open_session,
    provider_errors,
)
from ptexport.runtime.ort.shared_session import SharedSession, shared_session

_KEPT = 8  # buffers, if batches have any shape
_KEPT_OF_BUCKETS = 256  # buffers, if batches have the shapes of buckets, which are fewer


class Graph:
    """A loaded ONNX classifier. Thread-safe: each run has its own buffers, and ONNX Runtime's `run` is thread-safe.

    Attributes:
        session: an InferenceSession.
        provider: execution provider of the session.
        threads: number of CPUs that the session uses.
        inputs: names of the graph's inputs.
        buckets: shapes that batches are padded to; None: batches keep their shape.
        batch_rows: most rows of a batch.
        batch_tokens: most tokens of a batch of several rows, padding included.
        file: the model file, if graphs of other tasks can share the session; else None.
    """

    def __init__(
        self,
        session: Any,
        arrays: Mapping[str, NDArray[np.float32]] | None = None,
        shared: SharedSession | None = None,
        *,
        file: OnnxFile | None = None,
        provider: Provider | None = None,
        threads: int = 1,
        buckets: Buckets | None = None,
    ) -> None:
        from onnxruntime import OrtValue

        self.session = session
        self.provider = provider or Provider()
        self.threads = threads
        # An engine of TensorRT RTX has the task arrays among its inputs.
        self.inputs = [value.name for value in session.get_inputs() if value.name not in (arrays or {})]
        self.buckets = buckets
        self.batch_rows = buckets.most_rows if buckets else MAX_BATCH_ROWS
        self.batch_tokens = MAX_BATCH_TOKENS if buckets else CPU_BATCH_TOKENS
        self.file = file
        self._shared = shared  # keeps it alive for the next graph with its key
        device = (self.provider.device_type, self.provider.device)
        with provider_errors(self.provider):
            values = {name: OrtValue.ortvalue_from_numpy(array, *device) for name, array in (arrays or {}).items()}
        recorded = self.provider.cuda_graph
        make = partial(Buffers, session, self.inputs, values, device, rebinds=self.provider.ep_device is not None)
        self._pool = BufferPool(make, recorded=recorded, kept=_KEPT_OF_BUCKETS if buckets else _KEPT)
        # A CUDA graph can only be replayed by the thread that recorded it.
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
        return cls(session, file.arrays, shared, file=file, provider=provider, threads=threads, buckets=usable)

    def shared_file(self) -> OnnxFile:
        """Return the model file.

        Raises:
            ProviderError: this graph does not share its session: under TensorRT, or with CUDA graphs.
        """
        if self.file is None:
            kind = "CUDA graphs" if self.provider.cuda_graph else self.provider.name
            raise ProviderError(
                f"{kind}: got a session for one task, need one that tasks share; open the bundle on provider cpu or "
                "cuda without CUDA graphs"
            )
        return self.file

    def with_arrays(self, arrays: Mapping[str, NDArray[np.float32]], buckets: Buckets) -> "Graph":
        """Return the graph of another task, in the same session.

        Args:
            arrays: arrays of that task, by name; the same names as `file` has.
            buckets: shapes that its batches are padded to; ignored on the CPU.

        Raises:
            ProviderError: this graph does not share its session: under TensorRT, or with CUDA graphs.
        """
        own = self.shared_file()
        file = replace(own, arrays={name: arrays[name] for name in own.arrays})
        usable = _usable(buckets, self.provider)
        shared = (self.session, file.arrays, self._shared)
        return Graph(*shared, file=file, provider=self.provider, threads=self.threads, buckets=usable)

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """Compute logits of ids, float32 [rows, labels] or [rows, tasks, labels]; ignores unknown inputs.

        Raises:
            DataError: the batch is larger than all shapes that batches are padded to.
        """
        rows, tokens = ids["input_ids"].shape
        shape = (rows, tokens) if self.buckets is None else self.buckets.fit(rows, tokens)
        if self._thread is not None:
            return self._thread.submit(self._run, shape, ids).result()
        return self._run(shape, ids)

    def _run(self, shape: Shape, ids: Ids) -> NDArray[np.float32]:
        with provider_errors(self.provider):
            buffers = self._pool.take(shape)
            try:
                return buffers.run(ids)
            finally:
                self._pool.give_back(shape, buffers)

    def warm_up(self) -> None:
        """Run each shape that batches are padded to once."""
        for shape in self.buckets.shapes() if self.buckets else ():
            ids = {name: np.zeros(shape, dtype=np.int64) for name in self.inputs}
            ids["attention_mask"] = np.ones(shape, dtype=np.int64)
            self.run(ids)


def session_options(threads: int, provider: Provider) -> Any:
    """Make the onnxruntime.SessionOptions of every session."""
    options = load_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Keep the weights out of the arena, but use an arena for runs: without one, latency of 8 x 28 tokens is 10 % higher
    # in fp32 and a third higher in int8, since the kernel has to map large blocks again for each run.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # The plan of which values share memory takes time quadratic in the number of nodes: 3.6 of 4.5 s for SmolLM2 in
    # int8. With batches of at most CPU_BATCH_TOKENS, latency and memory are the same without it, thanks to the arena.
    options.enable_mem_reuse = provider.name != CPU
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if quota_cpus() is None else "0")
    # Use exact products of uint8 and int8 where the fast ones may overflow (AVX2 without VNNI).
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _load(model: Path, threads: int, provider: Provider) -> Any:
    return open_session(str(model), session_options(threads, provider), provider)


def _usable(buckets: Buckets | None, provider: Provider) -> Buckets | None:
    """Return the buckets on a GPU, where a batch shape has a cost, and for TensorRT RTX, whose engine has a profile.

    CUDA takes more rows.
    """
    if buckets is None or (provider.device_type == "cpu" and provider.name != TENSORRT_RTX):
        return None
    return replace(buckets, most_rows=CUDA_BATCH_ROWS) if provider.name == CUDA else buckets
