"""A bundle and the systems to compare it with -> a report of latency, memory and files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench.interleaved import FULL, QUICK, Contender, Workloads, bundle_name, measure
from ptexport.toolkit.bench.report import BenchReport
from ptexport.toolkit.bench.speed.prepare import own_graph_worker, prepare_baseline
from ptexport.toolkit.bench.speed.report import Cost, Size, size_name, speed_report
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts
from ptexport.toolkit.bench.systems.baselines import BASELINES
from ptexport.toolkit.bench.systems.case import Case, check_same_task, make_case
from ptexport.toolkit.bench.workers import Hardware, bundle_worker
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import Run

SIZES: tuple[Size, ...] = tuple((batch, tokens) for tokens in (8, 28, 100, 250) for batch in (1, 8, 32))
QUICK_SIZES: tuple[Size, ...] = ((1, 28), (8, 28), (1, 100))
COMPARED: tuple[Size, ...] = ((1, 28), (8, 28), (1, 1), (1, 100))
BUNDLE_TOLERANCE = 1e-2  # between bundles in fp32; see Contender.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """The settings of a speed bench.

    Attributes:
        bundle: folder of the bundle.
        against: names of baselines, and folders of bundles.
        run: folder of the run that the bundle was exported from; None: `against` has nothing that needs it.
        threads: number of CPUs that each system may use; None: all that this process may use.
        provider: execution provider; see `Hardware`.
        quick: whether to measure fewer sizes and rounds.
        sizes: sizes to measure; None: those of this bench.
        command: command line, for the report.
    """

    bundle: Path
    against: Sequence[str]
    run: Path | None
    threads: int | None
    provider: str
    quick: bool
    sizes: Sequence[Size] | None = None
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrants:
    """The systems of a measurement.

    Attributes:
        contenders: the bundle, then the others.
        digests: manifest digests of the bundles, by their names.
        left_out: systems that cannot be prepared, with the reason.
    """

    contenders: list[Contender]
    digests: dict[str, str]
    left_out: dict[str, str]


def bench_speed(config: SpeedConfig, cost_of: Callable[[int], Cost | None], progress: Progress) -> BenchReport:
    """Compare the latency of a bundle with other systems.

    Args:
        config: settings.
        cost_of: returns the arithmetic and memory cost of the bundle's graph for a sequence length; None: not known.
        progress: receives stages and the number of rounds.

    Raises:
        BenchError: a name in `against` is unknown, or the run is missing or has another task.
        ProviderError: a library that the provider needs is missing.
        BundleError: a bundle does not match its manifest, or has several tasks.
    """
    hardware = Hardware(threads=min(config.threads or available_cpus(), available_cpus()), provider=config.provider)
    _check_provider(config.provider)
    bundle = Bundle.open(config.bundle)
    synthetic = SyntheticTexts.of(bundle)
    entrants = _find_entrants(config, bundle, hardware, progress)
    wanted = config.sizes or (QUICK_SIZES if config.quick else SIZES)
    sizes = [size for size in wanted if size[1] <= synthetic.longest]
    if not sizes:
        raise BenchError(
            f"{config.bundle}: takes texts of {synthetic.longest} tokens, need more to measure; give another bundle"
        )
    compared = [synthetic.make(*size, f"compare {size}") for size in COMPARED if size[1] <= synthetic.longest]
    workloads = Workloads(
        batches={size_name(size): partial(_batch, synthetic, size) for size in sizes}, compared=compared
    )
    plan = QUICK if config.quick else FULL
    progress.stage("opening the systems")
    results = measure(entrants.contenders, workloads, plan, hardware, progress)
    results.left_out.update(entrants.left_out)
    return speed_report(
        results,
        plan,
        sizes,
        name=bundle.manifest.name,
        digests=entrants.digests,
        command=config.command,
        descriptions={name: baseline.description for name, baseline in BASELINES.items()},
        cost_of=lambda tokens: cost_of(tokens + synthetic.n_fixed),
        hardware=hardware,
    )


def _check_provider(name: str) -> None:
    """Check that the provider can run, before anything is prepared.

    Raises:
        ProviderError: a library that ONNX Runtime needs for the provider is missing.
        BenchError: PyTorch, which measures the GPU's peak rates, finds no GPU.
    """
    if choose_provider(name).device_type != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise BenchError(f"provider {name}: PyTorch {torch.__version__} finds no GPU; install a CUDA build of it")


def _batch(synthetic: SyntheticTexts, size: Size, call: int) -> list[str]:
    return synthetic.make(*size, f"{size} {call}")


def _find_entrants(config: SpeedConfig, bundle: Bundle, hardware: Hardware, progress: Progress) -> _Entrants:
    """Find the systems and prepare the baselines."""
    case = _case(config, bundle, progress)
    precision = bundle.manifest.graph.precision
    first = f"ptexport, {precision}"
    contenders = [Contender(name=first, start=bundle_worker(first, str(config.bundle), hardware), tolerance=None)]
    digests, left_out = {first: bundle.manifest.digest}, {}
    for name in config.against:
        if name in BASELINES:
            baseline = BASELINES[name]
            try:
                if baseline.own_graph:
                    start = own_graph_worker(name, baseline, config.bundle, hardware, progress)
                else:
                    assert case is not None, "checked by _case"
                    start = prepare_baseline(name, baseline, case, hardware, progress)
            except BenchError as e:
                left_out[name] = str(e)
                continue
            tolerance: float | None = baseline.tolerance
        else:
            other = Bundle.open(Path(name))
            if other.labels != bundle.labels:
                raise BenchError(f"--against {name}: has other labels; give a bundle of the same task")
            tolerance = BUNDLE_TOLERANCE if other.manifest.graph.precision == "fp32" else None
            shown = bundle_name(Path(name), other.manifest.graph.precision)
            name, start = shown, bundle_worker(shown, name, hardware)
            digests[name] = other.manifest.digest
        # A bundle in lower precision has other logits than fp32 systems.
        contenders.append(Contender(name=name, start=start, tolerance=tolerance if precision == "fp32" else None))
    return _Entrants(contenders=contenders, digests=digests, left_out=left_out)


def _case(config: SpeedConfig, bundle: Bundle, progress: Progress) -> Case | None:
    """Make the case of the baselines; None: `against` names none that needs one."""
    baselines = [name for name in config.against if name in BASELINES and not BASELINES[name].own_graph]
    for name in config.against:
        if name not in BASELINES and not Path(name).is_dir():
            known = ", ".join(BASELINES)
            raise BenchError(f"--against {name}: not a system or a folder; give one of {known}, or a bundle's folder")
    if not baselines:
        return None
    if config.run is None:
        raise BenchError(f"--against {baselines[0]}: needs the run that the bundle was exported from; add --run RUN")
    run = Run.read(config.run)
    check_same_task(run, bundle)
    checkpoint = find_checkpoint(run.config.model, revision=run.config.revision, stage=progress.stage)
    return make_case(run, checkpoint)
