"""A bundle -> a report of how it runs on each execution provider of this machine. Needs no torch.

ptexport was not run on a GPU yet. The report has everything that can be checked there: whether the provider runs the
graph, the golden rows, whether predictions depend on the other rows of a batch, and latency.
"""

import contextlib
import platform
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from ptexport.runtime import Engine, Task
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.engine.info import EngineInfo
from ptexport.runtime.errors import ProviderError, PtexportError
from ptexport.runtime.ort.cuda_driver import Gpu, read_gpu
from ptexport.runtime.ort.plugins import installed_plugins
from ptexport.toolkit.evaluation.doctor import Check, examine

BUILT_IN = ("cpu", "cuda", "tensorrt")
SIZES = ((1, 28), (8, 28), (32, 28), (1, 100))
ROUNDS = 9
_NEIGHBOURS = 20  # texts of each of three lengths


class ProviderLatency(msgspec.Struct, frozen=True, kw_only=True):
    """Latency of a call, from texts to predictions.

    Attributes:
        texts: texts per call.
        words: words per text.
        median_ms: median of several calls.
    """

    texts: int
    words: int
    median_ms: float


class ProviderRun(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider did with the bundle.

    Attributes:
        provider: the requested provider.
        error: why it does not run the bundle; None: it does.
        open_s: seconds to verify, load and compare the golden rows; with TensorRT, to build its engine as well.
        info: what ran where.
        among_neighbours: largest difference of a logit between a row alone and among 59 others, over all tasks.
        timings: latency by size.
    """

    provider: str
    error: str | None = None
    open_s: float | None = None
    info: EngineInfo | None = None
    among_neighbours: float | None = None
    timings: list[ProviderLatency] = []


class ProviderReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report. It holds no text of a user and no path, only the bundle's name.

    Attributes:
        bundle: name of the bundle.
        target: deployment target it was exported for.
        precision: precision it computes in.
        machine: processor and system.
        gpu: the GPU; None: there is none, or no driver.
        checks: output of `ptexport doctor`.
        outcomes: one per provider.
    """

    bundle: str
    target: str
    precision: str
    machine: str
    gpu: Gpu | None
    checks: list[Check]
    outcomes: list[ProviderRun]


def check_providers(bundle: Path, *, device: int = 0) -> ProviderReport:
    """Run a bundle on every provider that is built in, and on every installed plugin.

    Raises:
        BundleError: the bundle does not match its manifest.
    """
    gpu = None
    with contextlib.suppress(ProviderError):
        gpu = read_gpu(device)
    manifest = Bundle.open(bundle).manifest
    runs = [_run(bundle, provider, device if provider != "cpu" else 0) for provider in BUILT_IN]
    runs += [_run(bundle, plugin.name, 0) for plugin in installed_plugins()]
    return ProviderReport(
        bundle=manifest.name,
        target=manifest.graph.target,
        precision=manifest.graph.precision,
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        gpu=gpu,
        checks=[check for check in examine() if check.name != "cache"],  # its path may hold a user's name
        outcomes=runs,
    )


def _run(bundle: Path, provider: str, device: int) -> ProviderRun:
    started = time.perf_counter()
    try:
        engine = Engine.open(bundle, provider=provider, device=device)
        open_s = time.perf_counter() - started
        return ProviderRun(
            provider=provider,
            open_s=open_s,
            info=engine.info,
            among_neighbours=max(_among_neighbours(task) for task in engine.tasks.values()),
            timings=[_measure(next(iter(engine.tasks.values())), *size) for size in SIZES],
        )
    except PtexportError as e:
        return ProviderRun(provider=provider, error=without_paths(str(e) or type(e).__name__, bundle))


def without_paths(text: str, bundle: Path) -> str:
    """Replace the paths of this machine in a message."""
    named = {bundle.resolve(): bundle.resolve().name, bundle: bundle.resolve().name, cache_home(): "CACHE"}
    named |= {Path(sys.prefix): "PYTHON", Path.home(): "HOME"}
    for path, name in named.items():
        text = text.replace(str(path), name)
    return text


def _texts(n: int, words: int, *, pair: bool) -> list[str | tuple[str, str]]:
    """Make different texts of plain words; latency does not depend on their meaning."""
    texts = [" ".join(["city", *(f"{number}" for number in range(row, row + words - 1))]) for row in range(n)]
    return [(text, "city") for text in texts] if pair else [*texts]


def _among_neighbours(task: Task) -> float:
    pair = len(task.entry.fields) == 2
    texts = [text for words in (2, 9, 30) for text in _texts(_NEIGHBOURS, words, pair=pair)]
    among = task.logits(texts)
    alone = np.concatenate([task.logits([text]) for text in texts])
    return float(np.abs(among - alone).max())


def _measure(task: Task, n: int, words: int) -> ProviderLatency:
    texts = _texts(n, words, pair=len(task.entry.fields) == 2)
    milliseconds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        task.predict(texts)
        milliseconds.append(1000 * (time.perf_counter() - started))
    median_ms = statistics.median(milliseconds[1:])  # the first call of a size is slower
    return ProviderLatency(texts=n, words=words, median_ms=median_ms)
