"""A bundle on this machine's CPUs, under ONNX Runtime's profiler -> how long each kernel of each run took."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, Bundle
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.batching import batches
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.batch_shapes import CPU_BATCH_TOKENS
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.graph import Graph, session_options
from ptexport.runtime.ort.providers import Provider, open_session
from ptexport.toolkit.bench import turns
from ptexport.toolkit.bench.texts import PlainTexts

WARM_UP, RUNS = 2, 10
COLUMNS = ("attention", "mlp", "norms", "other")
SHARED, EMBEDDINGS, HEAD, NOWHERE = "masks and positions", "embeddings", "head", "not placed"
_KERNEL = "_kernel_time"

Place = tuple[str, int | None]
"""A part of a model by its name, and the layer, as the exporter tells them."""
Spot = tuple[str, str]
"""A row and a column of the table of layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """A profile, as asked for.

    Attributes:
        bundle: the folder.
        batch: texts in a call.
        tokens: of each, the prompt not counted.
        threads: CPUs to use; None: all that this process may.
        command: what was typed.
    """

    bundle: Path
    batch: int
    tokens: int
    threads: int | None
    command: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node, run once.

    Attributes:
        node: its name, as ONNX Runtime has it after its own fusions.
        kind: its operator.
        ms: how long it took.
    """

    node: str
    kind: str
    ms: float


@dataclass(frozen=True, slots=True)
class ProfiledRun:
    """One run of a graph: its time in all, in ms, and its kernels as they ran."""

    ms: float
    kernels: list[Kernel]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured, an entry a turn; in each the same texts with the profiler and without.

    Attributes:
        runs: with the profiler.
        profiled_ms: of the same, as ONNX Runtime's caller sees them.
        plain_ms: likewise, without the profiler.
        call_ms: around the latter, texts in, logits out.
        threads: CPUs that were used.
    """

    runs: list[ProfiledRun]
    profiled_ms: list[float]
    plain_ms: list[float]
    call_ms: list[float]
    threads: int


class _Timed:
    """A session that notes how long its runs take."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.ms: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *given: object) -> None:
        started = time.perf_counter()
        self._session.run_with_iobinding(*given)
        self.ms.append(1000 * (time.perf_counter() - started))


def measure_profile(config: ProfileConfig, bundle: Bundle, on_turn: Callable[[int, int | None], None]) -> Measured:
    """Answer texts with and without the profiler, in turn.

    Args:
        config: what was asked for.
        bundle: that of `config`.
        on_turn: told how many turns are done, and of how many.

    Raises:
        BenchError: the bundle does not take such texts, or not in one run.
    """
    texts = _texts(config, bundle)
    threads = min(config.threads or available_cpus(), available_cpus())
    calls = []
    with tempfile.TemporaryDirectory(prefix="ptexport-profile-") as folder:
        plain, profiled = _open(bundle, threads), _open(bundle, threads, Path(folder) / "run")
        with _engine(bundle, plain, threads) as without, _engine(bundle, profiled, threads) as with_profiler:
            for turn, some in enumerate(texts, 1):
                started = time.perf_counter()
                without.logits(some)
                calls.append(1000 * (time.perf_counter() - started))
                time.sleep(turns.PAUSE_S)
                with_profiler.logits(some)
                time.sleep(turns.PAUSE_S)
                on_turn(turn, len(texts))
        runs = read_runs(Path(profiled.end_profiling()).read_bytes())
    assert len(runs) == len(profiled.ms) == len(texts), "a run a turn, and the profiler kept all"
    assert len({tuple(kernel.node for kernel in run.kernels) for run in runs}) == 1, "in the same order"
    return Measured(runs[WARM_UP:], profiled.ms[WARM_UP:], plain.ms[WARM_UP:], calls[WARM_UP:], threads)


def _texts(config: ProfileConfig, bundle: Bundle) -> list[list[str]]:
    """Make texts for each turn."""
    plain = PlainTexts.of(bundle)
    if config.tokens > plain.longest:
        raise BenchError(f"--tokens: got {config.tokens}, the bundle takes at most {plain.longest}; ask for fewer")
    most = len(next(batches([config.tokens + plain.n_fixed] * config.batch, CPU_BATCH_TOKENS)))
    if config.batch > most:
        raise BenchError(
            f"--batch: got {config.batch}, an engine runs at most {most} such texts at once; ask for fewer"
        )
    return [plain.make(config.batch, config.tokens, f"profile {turn}") for turn in range(WARM_UP + RUNS)]


def _open(bundle: Bundle, threads: int, profile: Path | None = None) -> _Timed:
    """Open a session as an engine does on the CPU, but of its own."""
    options = session_options(threads, Provider())
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    return _Timed(open_session(os.fspath(bundle.path / MODEL), options, Provider()))


def _engine(bundle: Bundle, session: _Timed, threads: int) -> Engine:
    model = bundle.path / MODEL
    encoder = TextEncoder.from_json((bundle.path / TOKENIZER).read_text("utf-8"), fields=bundle.manifest.fields)
    arrays = OnnxFile.parse(model.read_bytes(), os.fspath(model)).arrays
    return Engine(bundle, OpenState(bundle.manifest, encoder, Graph(session, arrays, threads=threads)))


def read_runs(profile: bytes) -> list[ProfiledRun]:
    """Read what the profiler wrote: a run's kernels as they ran, and then the run."""
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


def place_kernels(kernels: Sequence[Kernel], places: Mapping[str, Place]) -> list[Spot]:
    """Find the row and column of each kernel of a run.

    A node that ONNX Runtime made is known by the name that it made its own of. One with no such name is placed where
    both the last and the next known one are of one row; a norm, with what is normed for: the next known row of a layer
    or the head. The others are not placed.

    Args:
        kernels: in the order they ran.
        places: of the nodes of the graph on disk, by name.
    """
    known = [_spot_of(kernel, places) for kernel in kernels]
    before: Spot | None = None
    befores = []
    for spot in known:
        before = spot or before
        befores.append(before)
    after: Spot | None = None
    normed: Spot | None = None
    spots = []
    for kernel, spot, before in zip(reversed(kernels), reversed(known), reversed(befores), strict=True):
        if spot is not None:
            after = spot
            normed = normed if spot[0] == SHARED else spot
        elif "Norm" in kernel.kind and normed is not None:
            spot = normed[0], "norms"
        elif before is not None and after is not None and before[0] == after[0]:
            spot = before
        spots.append(spot or (NOWHERE, "other"))
    return spots[::-1]


def _spot_of(kernel: Kernel, places: Mapping[str, Place]) -> Spot | None:
    """Place a kernel by a name on disk: its own or in it, as in "node_1/MatMulScaleFusion/" and "fused node_1"."""
    for name in (kernel.node, *re.split(r"[/ ]", kernel.node)):
        if name in places:
            part, layer = places[name]
            column = part if part in COLUMNS else "other"
            if layer is not None:
                return f"layer {layer}", column
            if part == "other":
                return SHARED, column
            return EMBEDDINGS if part == EMBEDDINGS else HEAD, column
    return None
