"""model.onnx -> logits for ids, with ONNX Runtime; knows sessions and threads, nothing of texts or labels."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.buckets import CPU_BATCH_TOKENS, MAX_BATCH_TOKENS, Buckets
from ptexport.runtime.buffers import BufferPool, Buffers, Shape
from ptexport.runtime.bundle import WEIGHTS
from ptexport.runtime.cpus import available_cpus, quota_cpus
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.manifest import FileEntry
from ptexport.runtime.onnx_file import OnnxFile
from ptexport.runtime.providers import (
    CPU,
    TENSORRT,
    Provider,
    choose_provider,
    load_onnxruntime,
    open_session,
    said,
)
from ptexport.runtime.sessions import SharedSession, shared_session
from ptexport.runtime.tensorrt import Build, Engines
from ptexport.runtime.tokens import Ids

_log = logging.getLogger("ptexport.runtime")
_KEPT = 8  # buffers of batches as they come, whose shapes are many
_KEPT_OF_BUCKETS = 256  # more than there are shapes
_T = TypeVar("_T")


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
        weights_sha256: str | None = None,
        buckets: Buckets | None = None,
    ) -> "Graph":
        """Load a graph.

        Args:
            model: the file, with its weights beside it.
            provider: what to run it on; None: the CPU.
            threads: CPUs to use; None: those this process may use.
            weights_sha256: of the weights file, which was verified: the session is shared with every graph that has the
                same weights, provider, threads and frame, and this task's arrays are given to each run. None: a session
                of its own.
            buckets: shapes to pad batches to; on the CPU none are.

        Raises:
            BundleError: the file is no ONNX model.
            ProviderError: the provider does not run it.
            MissingExtraError: ONNX Runtime is not installed.
        """
        threads = threads or available_cpus()
        provider = provider or Provider()
        given: dict[str, Any] = {"provider": provider, "threads": threads}
        given["buckets"] = buckets if provider.device_type != "cpu" else None
        if weights_sha256 is None:
            return cls(_load(model, threads, provider), **given)
        file = OnnxFile.parse(model.read_bytes(), str(model))
        shared = shared_session((weights_sha256, file.frame_sha256, threads, provider))
        return cls(shared.load(lambda: _load(model, threads, provider)), file.arrays, shared, **given)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a bundle is to be run, as `Engine.open` takes it."""

    asked: str
    device: int
    threads: int | None
    cuda_graph: bool
    build: Build

    def __post_init__(self) -> None:
        """Check the values, which may come from another program.

        Raises:
            ProviderError: one is none of its kind.
        """
        if self.build not in get_args(Build):
            raise ProviderError(f"build: got {self.build!r}, need one of {', '.join(get_args(Build))}; choose one")
        for name, value, least in (("device", self.device, 0), ("threads", self.threads, 1)):
            if (value is not None or name == "device") and (not isinstance(value, int) or value < least):
                raise ProviderError(f"{name}: got {value!r}, need a whole number of at least {least}; choose one")

    def open(
        self,
        model: Path,
        files: Mapping[str, FileEntry],
        max_length: int,
        finish: Callable[[Graph], _T],
        *,
        share: bool = True,
    ) -> _T:
        """Load a bundle's graph on the provider that was asked for, and run it.

        Args:
            model: the file, with its weights beside it, both verified.
            files: of the bundle.
            max_length: most ids of a row.
            finish: makes what is wanted of the graph, and runs its golden rows.
            share: whether bundles of one backbone share a session.

        Raises:
            As `Graph.open`, `choose_provider` and `finish`; on anything but a CPU, all that is raised is a
            ProviderError, and "auto" uses the CPU then.
        """
        if self.asked in ("tensorrt", TENSORRT) and OnnxFile.parse(model.read_bytes(), str(model)).arrays:
            raise ProviderError(f"{model}: has default values, need constants; export it with --target tensorrt")
        provider = choose_provider(self.asked, device=self.device, cuda_graph=self.cuda_graph)
        buckets = Buckets.up_to(max_length)
        # Recordings are of one graph's arrays.
        weights_sha256 = files[WEIGHTS].sha256 if share and not provider.cuda_graph else None
        options: dict[str, Any] = {"threads": self.threads, "weights_sha256": weights_sha256, "buckets": buckets}
        if provider.name != CPU:
            try:
                if provider.name == TENSORRT:
                    return finish(self._on_tensorrt(model, files, provider, buckets))
                return finish(Graph.open(model, provider=provider, **options))
            except Exception as e:
                error = (
                    e
                    if isinstance(e, ProviderError)
                    else ProviderError(
                        f"provider {provider.name}: does not run this bundle ({said(e)}); use provider cpu"
                    )
                )
                if self.asked != "auto":
                    raise error from e
                _log.warning("provider auto: uses the CPU, since %s", error)
                provider = Provider(degraded=str(error))
        return finish(Graph.open(model, provider=provider, **options))

    def _on_tensorrt(self, model: Path, files: Mapping[str, FileEntry], provider: Provider, buckets: Buckets) -> Graph:
        inputs = OnnxFile.parse(model.read_bytes(), str(model)).inputs

        def load(at: Path, with_options: Provider) -> Graph:
            return Graph.open(at, provider=with_options, threads=self.threads, buckets=buckets)

        return Engines.of(provider, files, inputs, buckets).open(model, self.build, load)


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
