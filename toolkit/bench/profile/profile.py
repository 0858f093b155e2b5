"""A bundle on this machine's CPUs, under ONNX Runtime's profiler -> the time of each kernel in each run."""

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptexport.runtime.bundle.folder import MODEL, Bundle
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.batching import batches
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.batch_shapes import CPU_BATCH_TOKENS, MAX_BATCH_ROWS
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.graph import Graph, session_options
from ptexport.runtime.ort.providers import Provider, open_session
from ptexport.toolkit.bench import interleaved
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts
from ptexport.toolkit.progress import Progress

WARM_UP, RUNS = 2, 10
COLUMNS = ("attention", "mlp", "norms", "other")
SHARED, EMBEDDINGS, HEAD, NOWHERE = "masks and positions", "embeddings", "head", "not placed"
_KERNEL = "_kernel_time"

PartOfModel = tuple[str, int | None]
"""Name of a part of the model, and its layer; None: outside the layers. The exporter determines both."""
Cell = tuple[str, str]
"""Row and column of the layer table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """The settings of a profile.

    Attributes:
        bundle: folder of the bundle.
        batch: texts per call.
        tokens: tokens of each text without the prompt.
        threads: number of CPUs to use; None: all that this process may use.
        command: command line, for the report.
    """

    bundle: Path
    batch: int
    tokens: int
    threads: int | None
    command: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One execution of a node.

    Attributes:
        node: name of the node, after ONNX Runtime's fusions.
        kind: operator.
        ms: duration in milliseconds.
    """

    node: str
    kind: str
    ms: float


@dataclass(frozen=True, slots=True)
class ProfiledRun:
    """One run of the graph: its total duration in ms, and its kernels in order of execution."""

    ms: float
    kernels: list[Kernel]


@dataclass(frozen=True, slots=True)
class ProfileSamples:
    """The measurements, one entry per round. Each round has the same texts with and without the profiler.

    Attributes:
        runs: profiles of the runs with the profiler.
        profiled_ms: durations of those runs for ONNX Runtime's caller.
        plain_ms: durations of the runs without the profiler.
        call_ms: latency of the calls without the profiler, from texts to logits.
        threads: number of CPUs that were used.
    """

    runs: list[ProfiledRun]
    profiled_ms: list[float]
    plain_ms: list[float]
    call_ms: list[float]
    threads: int


class _TimedSession:
    """A session that records the durations of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.ms: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *given: object) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(*given)
        self.ms.append(1000 * (time.perf_counter() - started))


def measure_profile(config: ProfileConfig, bundle: Bundle, progress: Progress) -> ProfileSamples:
    """Run calls with and without the profiler alternately.

    Args:
        config: settings.
        bundle: bundle of `config`.
        progress: receives the number of rounds as rows.

    Raises:
        BenchError: the bundle does not take such texts, or an engine would split them into several batches.
        BundleError: the bundle has several tasks.
    """
    batches_of_rounds = _batches(config, bundle)
    threads = min(config.threads or available_cpus(), available_cpus())
    calls = []
    with tempfile.TemporaryDirectory(prefix="ptexport-profile-") as folder:
        plain, profiled = _open(bundle, threads), _open(bundle, threads, Path(folder) / "run")
        with _engine(bundle, plain, threads) as without, _engine(bundle, profiled, threads) as with_profiler:
            for number, texts in enumerate(batches_of_rounds, 1):
                started = time.perf_counter()
                without.logits(texts)
                calls.append(1000 * (time.perf_counter() - started))
                time.sleep(interleaved.PAUSE_S)
                with_profiler.logits(texts)
                time.sleep(interleaved.PAUSE_S)
                progress.rows(number, len(batches_of_rounds))
        runs = read_runs(Path(profiled.end_profiling()).read_bytes())
    assert len(runs) == len(profiled.ms) == len(batches_of_rounds), "one run per round, none lost by the profiler"
    assert len({tuple(kernel.node for kernel in run.kernels) for run in runs}) == 1, "kernels run in the same order"
    return ProfileSamples(runs[WARM_UP:], profiled.ms[WARM_UP:], plain.ms[WARM_UP:], calls[WARM_UP:], threads)


def _batches(config: ProfileConfig, bundle: Bundle) -> list[list[str]]:
    """Make the texts of each round."""
    synthetic = SyntheticTexts.of(bundle)
    if config.tokens > synthetic.longest:
        raise BenchError(f"--tokens: got {config.tokens}, the bundle takes at most {synthetic.longest}; give fewer")
    lengths = [config.tokens + synthetic.n_fixed] * config.batch
    most = len(next(batches(lengths, most_rows=MAX_BATCH_ROWS, most_tokens=CPU_BATCH_TOKENS)))
    if config.batch > most:
        raise BenchError(
            f"--batch: got {config.batch}, an engine runs at most {most} such texts in a batch; give fewer"
        )
    return [synthetic.make(config.batch, config.tokens, f"profile {number}") for number in range(WARM_UP + RUNS)]


def _open(bundle: Bundle, threads: int, profile: Path | None = None) -> _TimedSession:
    """Open a session like an engine's on the CPU, but not shared."""
    options = session_options(threads, Provider())
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    return _TimedSession(open_session(os.fspath(bundle.path / MODEL), options, Provider()))


def _engine(bundle: Bundle, session: _TimedSession, threads: int) -> Engine:
    model = bundle.path / MODEL
    arrays = OnnxFile.parse(model.read_bytes(), os.fspath(model)).arrays
    return Engine(bundle, OpenState(TaskEncoders.open(bundle), Graph(session, arrays, threads=threads)))


def read_runs(profile: bytes) -> list[ProfiledRun]:
    """Read the profiler's JSON, in which the kernels of a run precede the run."""
    runs: list[ProfiledRun] = []
    kernels: list[Kernel] = []
    for event in msgspec.json.decode(profile):
        name, ms = event["name"], event.get("dur", 0) / 1000
        if name == "model_run":
            runs.append(ProfiledRun(ms, kernels))
            kernels = []
        elif event["cat"] == "Node" and name.endswith(_KERNEL):
            kernels.append(Kernel(name.removesuffix(_KERNEL), event["args"]["op_name"], ms))
    return runs


def place_kernels(kernels: Sequence[Kernel], parts: Mapping[str, PartOfModel]) -> list[Cell]:
    """Find the row and column of each kernel of a run.

    A node that ONNX Runtime created has a name that contains the name of an original node. If it does not, its row is
    that of the kernels before and after it, if they have the same row. A norm belongs to its consumer: the next known
    row of a layer or the head. All others are "not placed".

    Args:
        kernels: kernels in order of execution.
        parts: parts of the model by names of nodes in the file.
    """
    known = [_cell_of(kernel, parts) for kernel in kernels]
    before: Cell | None = None
    befores = []
    for cell in known:
        before = cell or before
        befores.append(before)
    after: Cell | None = None
    normed: Cell | None = None
    cells = []
    for kernel, cell, before in zip(reversed(kernels), reversed(known), reversed(befores), strict=True):
        if cell is not None:
            after = cell
            normed = normed if cell[0] == SHARED else cell
        elif "Norm" in kernel.kind and normed is not None:
            cell = normed[0], "norms"
        elif before is not None and after is not None and before[0] == after[0]:
            cell = before
        cells.append(cell or (NOWHERE, "other"))
    return cells[::-1]


def _cell_of(kernel: Kernel, parts: Mapping[str, PartOfModel]) -> Cell | None:
    """Place a kernel by its name or a part of it, as in "node_1/MatMulScaleFusion/" and "fused node_1"."""
    for name in (kernel.node, *re.split(r"[/ ]", kernel.node)):
        if name in parts:
            part, layer = parts[name]
            column = part if part in COLUMNS else "other"
            if layer is not None:
                return f"layer {layer}", column
            if part == "other":
                return SHARED, column
            return EMBEDDINGS if part == EMBEDDINGS else HEAD, column
    return None
