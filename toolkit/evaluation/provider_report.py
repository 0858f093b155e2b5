"""A bundle -> what each execution provider of this machine makes of it, as a report to send back; without torch.

Nobody has run ptexport on a GPU for us yet. This runs all that there is to check there: whether the provider runs the
graph at all, its answers to the golden rows, whether an answer depends on the rows beside it, and how long it takes.
"""

import contextlib
import platform
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.engine.info import EngineInfo
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.cuda_driver import Gpu, read_gpu
from ptexport.toolkit.evaluation.doctor import Check, examine

PROVIDERS = ("cpu", "cuda", "tensorrt")
SIZES = ((1, 28), (8, 28), (32, 28), (1, 100))
ROUNDS = 9
_NEIGHBOURS = 20  # of each of three lengths


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Texts in, predictions out.

    Attributes:
        texts: asked for at once.
        words: of each.
        median_ms: of several calls.
    """

    texts: int
    words: int
    median_ms: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider made of the bundle.

    Attributes:
        asked: for which provider.
        error: why it does not run it; None: it does.
        open_s: seconds to verify, load and compare the golden rows; with TensorRT, to build its engine as well.
        info: what ran where.
        among_neighbours: largest difference of a logit between a row alone and among 59 others.
        timings: by size.
    """

    asked: str
    error: str | None = None
    open_s: float | None = None
    info: EngineInfo | None = None
    among_neighbours: float | None = None
    timings: list[Timing] = []


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. It holds no text of anybody's and no path, but the bundle's name.

    Attributes:
        bundle: its name.
        target: what it was exported for.
        precision: what it computes in.
        machine: processor and system.
        gpu: None: there is none, or no driver.
        checks: what `ptexport doctor` says.
        outcomes: by provider.
    """

    bundle: str
    target: str
    precision: str
    machine: str
    gpu: Gpu | None
    checks: list[Check]
    outcomes: list[Outcome]


def check_up(bundle: Path, *, device: int = 0) -> Report:
    """Run a bundle on every provider.

    Raises:
        BundleError: the bundle is not what it says.
    """
    gpu = None
    with contextlib.suppress(ProviderError):
        gpu = read_gpu(device)
    manifest = Bundle.open(bundle).manifest
    outcomes = [_try(bundle, asked, device) for asked in PROVIDERS]
    return Report(
        bundle=manifest.name,
        target=manifest.graph.target,
        precision=manifest.graph.precision,
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        gpu=gpu,
        checks=[check for check in examine() if check.name != "cache"],  # its path may hold a user's name
        outcomes=outcomes,
    )


def _try(bundle: Path, asked: str, device: int) -> Outcome:
    started = time.perf_counter()
    try:
        engine = Engine.open(bundle, provider=asked, device=0 if asked == "cpu" else device)
        open_s = time.perf_counter() - started
        return Outcome(
            asked=asked,
            open_s=open_s,
            info=engine.info,
            among_neighbours=_among_neighbours(engine),
            timings=[_time(engine, *size) for size in SIZES],
        )
    except Exception as e:  # whatever it is, the report is to say it
        return Outcome(asked=asked, error=without_paths(str(e) or type(e).__name__, bundle))


def without_paths(text: str, bundle: Path) -> str:
    """Take this machine's folders out of a sentence."""
    named = {bundle.resolve(): bundle.resolve().name, bundle: bundle.resolve().name, cache_home(): "CACHE"}
    named |= {Path(sys.prefix): "PYTHON", Path.home(): "HOME"}
    for path, name in named.items():
        text = text.replace(str(path), name)
    return text


def _texts(n: int, words: int, *, pair: bool) -> list[str | tuple[str, str]]:
    """Make texts that all differ, of plain words: what they mean changes no time."""
    texts = [" ".join(["city", *(f"{number}" for number in range(row, row + words - 1))]) for row in range(n)]
    return [(text, "city") for text in texts] if pair else [*texts]


def _among_neighbours(engine: Engine) -> float:
    pair = len(engine.manifest.fields) == 2
    texts = [text for words in (2, 9, 30) for text in _texts(_NEIGHBOURS, words, pair=pair)]
    among = engine.logits(texts)
    alone = np.concatenate([engine.logits([text]) for text in texts])
    return float(np.abs(among - alone).max())


def _time(engine: Engine, n: int, words: int) -> Timing:
    texts = _texts(n, words, pair=len(engine.manifest.fields) == 2)
    milliseconds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        engine.predict(texts)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return Timing(texts=n, words=words, median_ms=statistics.median(milliseconds[1:]))  # the first of a size is slower
