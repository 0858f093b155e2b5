"""A speed bench as asked for: a bundle and its rivals in turn -> a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench.report import Report
from ptexport.toolkit.bench.speed.prepare import make_ready
from ptexport.toolkit.bench.speed.report import Cost, Size, name_of, speed_report
from ptexport.toolkit.bench.systems.case import Case, check_same_task, make_case
from ptexport.toolkit.bench.systems.rivals import RIVALS
from ptexport.toolkit.bench.texts import PlainTexts
from ptexport.toolkit.bench.turns import FULL, QUICK, Contender, Loads, bundle_worker, measure, shown_name
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.run.run import Run

SIZES: tuple[Size, ...] = tuple((batch, tokens) for tokens in (8, 28, 100, 250) for batch in (1, 8, 32))
QUICK_SIZES: tuple[Size, ...] = ((1, 28), (8, 28), (1, 100))
COMPARED: tuple[Size, ...] = ((1, 28), (8, 28), (1, 1), (1, 100))
SAME_BUNDLE = 1e-2  # of the range of logits, between bundles in fp32


class Progress(Protocol):
    """What is told meanwhile."""

    def stage(self, name: str) -> None:
        """Something begins that takes long."""

    def rows(self, done: int, total: int | None) -> None:
        """So many turns are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """A speed bench, as asked for.

    Attributes:
        bundle: the folder.
        against: names of rivals, and folders of bundles.
        run: that the bundle was exported from; None: there are no rivals by name.
        threads: CPUs that each system may use; None: all that this process may.
        provider: see Hardware.
        quick: measure less.
        command: what was typed.
    """

    bundle: Path
    against: Sequence[str]
    run: Path | None
    threads: int | None
    provider: str
    quick: bool
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrants:
    """Who takes part.

    Attributes:
        contenders: the bundle first.
        digests: of the manifests of bundles among them, by their names.
        left_out: who cannot, with the reason.
    """

    contenders: list[Contender]
    digests: dict[str, str]
    left_out: dict[str, str]


def bench_speed(config: SpeedConfig, cost_of: Callable[[int], Cost | None], progress: Progress) -> Report:
    """Time a bundle against others.

    Args:
        config: who takes part.
        cost_of: what the bundle's graph takes for a row of so many ids; None: not known.
        progress: told meanwhile.

    Raises:
        BenchError: a name is nobody's, or the run is missing or another task's.
        ProviderError: a library that the provider needs is missing.
        BundleError: the bundle, or one that it is held against, is not what its manifest says.
    """
    threads = min(config.threads or available_cpus(), available_cpus())
    hardware = Hardware(threads=threads, provider=config.provider)
    _check_provider(config.provider)
    bundle = Bundle.open(config.bundle)
    plain = PlainTexts.of(bundle)
    entrants = _find_entrants(config, bundle, hardware, progress)
    sizes = [size for size in (QUICK_SIZES if config.quick else SIZES) if size[1] <= plain.longest]
    if not sizes:
        raise BenchError(
            f"{config.bundle}: leaves {plain.longest} tokens for a text, too few to measure; give another bundle"
        )
    compared = [plain.make(*size, f"compare {size}") for size in COMPARED if size[1] <= plain.longest]
    texts = {name_of(size): partial(_texts, plain, size) for size in sizes}
    plan = QUICK if config.quick else FULL
    progress.stage("opening what is measured")
    results = measure(entrants.contenders, Loads(texts=texts, compared=compared), plan, hardware, progress.rows)
    results.left_out.update(entrants.left_out)
    return speed_report(
        results,
        plan,
        sizes,
        name=bundle.manifest.name,
        digests=entrants.digests,
        command=config.command,
        does={name: rival.does for name, rival in RIVALS.items()},
        cost_of=lambda tokens: cost_of(tokens + plain.n_fixed),
        hardware=hardware,
    )


def _check_provider(name: str) -> None:
    """Refuse at once what cannot run later.

    Raises:
        ProviderError: a library that ONNX Runtime needs for it is missing.
        BenchError: PyTorch, which measures what a GPU could do at most, sees none.
    """
    if choose_provider(name).device_type != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise BenchError(f"provider {name}: PyTorch {torch.__version__} sees no GPU; install one built for CUDA")


def _texts(plain: PlainTexts, size: Size, turn: int) -> list[str]:
    return plain.make(*size, f"{size} {turn}")


def _find_entrants(config: SpeedConfig, bundle: Bundle, hardware: Hardware, progress: Progress) -> _Entrants:
    """Find who takes part, and make ready what needs it."""
    case = _case(config, bundle, progress)
    path, left_out = str(config.bundle), {}
    precision = bundle.manifest.graph.precision
    first = f"ptexport, {precision}"
    contenders = [Contender(name=first, start=bundle_worker(first, path, hardware), tolerance=None)]
    digests = {first: bundle.manifest.digest}
    for name in config.against:
        if name in RIVALS:
            assert case is not None, "asked for above"
            try:
                start = make_ready(name, RIVALS[name], case, hardware, progress.stage)
            except BenchError as e:
                left_out[name] = str(e)
                continue
            tolerance: float | None = RIVALS[name].tolerance
        else:
            other = Bundle.open(Path(name))
            if other.labels != bundle.labels:
                raise BenchError(f"--against {name}: has other labels; give a bundle of the same task")
            tolerance = SAME_BUNDLE if other.manifest.graph.precision == "fp32" else None
            shown = shown_name(Path(name), other.manifest.graph.precision)
            name, start = shown, bundle_worker(shown, name, hardware)
            digests[name] = other.manifest.digest
        # What rounds otherwise cannot be held to another's answers.
        contenders.append(Contender(name=name, start=start, tolerance=tolerance if precision == "fp32" else None))
    return _Entrants(contenders=contenders, digests=digests, left_out=left_out)


def _case(config: SpeedConfig, bundle: Bundle, progress: Progress) -> Case | None:
    rivals = [name for name in config.against if name in RIVALS]
    for name in config.against:
        if name not in RIVALS and not Path(name).is_dir():
            raise BenchError(
                f"--against {name}: is neither a system nor a folder; write {', '.join(RIVALS)} or a bundle"
            )
    if not rivals:
        return None
    if config.run is None:
        raise BenchError(f"--against {rivals[0]}: needs the prompt as it was trained; add --run RUN")
    run = Run.read(config.run)
    check_same_task(run, bundle.manifest)
    checkpoint = find_checkpoint(run.config.model, revision=run.config.revision, stage=progress.stage)
    return make_case(run, checkpoint)
