"""A speed bench as asked for -> who takes part -> a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from ptexport.runtime.bundle import TOKENIZER, Bundle
from ptexport.runtime.cpus import available_cpus
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import Case, check_same_task, make_case, plain_words
from ptexport.toolkit.bench.report import Report
from ptexport.toolkit.bench.speed import FULL, QUICK, Contender, measure
from ptexport.toolkit.bench.speed_report import speed_report
from ptexport.toolkit.bench.systems import RIVALS
from ptexport.toolkit.bench.workers import WORKER, Worker, make_ready
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.run import Run

SAME_BUNDLE = 1e-2  # of a logit, between bundles in fp32


class Progress(Protocol):
    """What is told meanwhile."""

    def stage(self, name: str) -> None:
        """Something begins that takes long."""

    def rows(self, done: int, total: int | None) -> None:
        """So many turns are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A speed bench, as asked for.

    Attributes:
        bundle: the folder.
        against: names of rivals, and folders of bundles.
        run: that the bundle was exported from; None: there are no rivals by name.
        threads: CPUs that each system may use; None: all that this process may.
        quick: measure less.
    """

    bundle: Path
    against: Sequence[str]
    run: Path | None
    threads: int | None
    quick: bool


def hold(contest: Contest, flops_of: Callable[[int], int | None], progress: Progress, *, command: str) -> Report:
    """Hold a contest.

    Args:
        contest: who takes part.
        flops_of: FLOPs of the bundle's graph for a row of so many tokens; None: not known.
        progress: told meanwhile.
        command: what was typed.

    Raises:
        BenchError: a name is nobody's, or the run is missing or another task's.
        BundleError: the bundle, or one that it is held against, is not what its manifest says.
    """
    threads = min(contest.threads or available_cpus(), available_cpus())
    bundle = Bundle.open(contest.bundle)
    first = _of_bundle(contest.bundle, bundle, threads)
    contenders, digests = [first], {first.name: bundle.manifest.digest}
    left_out: dict[str, str] = {}
    case = _case(contest, bundle, progress)
    for name in contest.against:
        if name in RIVALS:
            assert case is not None
            try:
                start = make_ready(name, RIVALS[name], case, threads, progress.stage)
            except BenchError as e:
                left_out[name] = str(e)
                continue
            contenders.append(Contender(name=name, start=start, tolerance=_tolerance(bundle, RIVALS[name].tolerance)))
        else:
            other = Bundle.open(Path(name))
            contender = _of_bundle(Path(name), other, threads, held_against=bundle)
            contenders.append(contender)
            digests[contender.name] = other.manifest.digest
    tokenizer = Tokenizer.from_file(str(contest.bundle / TOKENIZER))
    plan = QUICK if contest.quick else FULL

    def ceiling() -> Worker:
        return Worker("ceiling", "ptexport.toolkit.bench.ceiling", [str(threads)], threads=threads)

    progress.stage("opening what is measured")
    results = measure(contenders, ceiling, plain_words(tokenizer), plan, progress.rows)
    results.left_out.update(left_out)
    return speed_report(
        results,
        plan,
        title=f"{bundle.manifest.name}: speed",
        command=command,
        bundles=digests,
        does={name: rival.does for name, rival in RIVALS.items()},
        flops_of=flops_of,
        threads=threads,
    )


def _case(contest: Contest, bundle: Bundle, progress: Progress) -> Case | None:
    rivals = [name for name in contest.against if name in RIVALS]
    for name in contest.against:
        if name not in RIVALS and not Path(name).is_dir():
            raise BenchError(
                f"--against {name}: is neither a system nor a folder; write {', '.join(RIVALS)} or a bundle"
            )
    if not rivals:
        return None
    if contest.run is None:
        raise BenchError(f"--against {rivals[0]}: needs the prompt as it was trained; add --run RUN")
    run = Run.read(contest.run)
    check_same_task(run, bundle.manifest)
    checkpoint = find_checkpoint(run.config.model, revision=run.config.revision, stage=progress.stage)
    return make_case(run, checkpoint)


def _of_bundle(path: Path, bundle: Bundle, threads: int, *, held_against: Bundle | None = None) -> Contender:
    name = (
        f"ptexport, {bundle.manifest.graph.precision}"
        if held_against is None
        else f"{path.name}, {bundle.manifest.graph.precision}"
    )
    if held_against is not None and bundle.labels != held_against.labels:
        raise BenchError(f"--against {path}: has other labels; give a bundle of the same task")
    tolerance = None if held_against is None else _tolerance(held_against, SAME_BUNDLE if _exact(bundle) else None)
    arguments = ["serve", "bundle", "", str(path), str(threads)]
    return Contender(name=name, start=lambda: Worker(name, WORKER, arguments, threads=threads), tolerance=tolerance)


def _exact(bundle: Bundle) -> bool:
    return bundle.manifest.graph.precision == "fp32"


def _tolerance(first: Bundle, tolerance: float | None) -> float | None:
    """What rounds otherwise cannot be held to another's answers."""
    return tolerance if _exact(first) else None
