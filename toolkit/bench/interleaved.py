"""Systems in processes of their own, timed alternately on the same texts -> latencies, memory and start times.

In a round every system runs the same calls, one system after the other. A slowdown of the machine then affects all of
them, and a ratio compares two systems in one round.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.workers import PEAK_WORKER, Hardware, Worker
from ptexport.toolkit.progress import Progress

Batch = Sequence[str | Sequence[str]]
"""Texts of one call, or pairs of texts."""

WARM_UP = 1  # rounds of one call before the timed ones: the first call of a shape allocates memory
MOST_CALLS = 10
SAMPLE_S = 0.1  # duration of the first system's calls in a round, if one call is shorter
PAUSE_S = 0.2  # until the threads of the previous system have stopped spinning


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """How much is measured.

    Attributes:
        rounds: timed rounds per workload.
        few_rounds: smallest number of rounds, if the time runs out.
        seconds: time per workload after which no further round starts.
        starts: processes that are started to time the start.
    """

    rounds: int
    few_rounds: int = 6  # fewer have no 95 % interval of the median
    seconds: float
    starts: int


FULL = RoundPlan(rounds=15, seconds=60, starts=3)
QUICK = RoundPlan(rounds=9, seconds=12, starts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A system to measure.

    Attributes:
        name: name in the report.
        start: starts its process.
        tolerance: largest difference of a logit from the first system's, as a share of the range of the first system's
            logits; None: any difference is only reported.
    """

    name: str
    start: Callable[[], Worker]
    tolerance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """The texts of a measurement.

    Attributes:
        batches: by name of the workload, a function from the number of a call to its texts; no two calls have the same.
        compared: batches of the comparison of logits before timing.
    """

    batches: Mapping[str, Callable[[int], Batch]]
    compared: Sequence[Batch]


@dataclass(frozen=True, slots=True)
class Sample:
    """A system's measurement in one round: median seconds per call, and the process's peak memory so far in bytes."""

    seconds: float
    peak_bytes: int


@dataclass(slots=True, kw_only=True)
class SystemResult:
    """The measurements of one system.

    Attributes:
        setting: precision and mode, such as "fp32, eager".
        file_bytes: size of the files that a device needs.
        task_bytes: size of those files that are new for another task on the same backbone.
        max_abs_diff: largest difference of a logit from the first system's.
        flips: number of compared texts with another label.
        seconds: by workload, the median seconds per call of each round; round k has the same texts for all systems.
        start_s: seconds from the start of a process to its first prediction, one per start.
        resident_bytes: resident memory after the first prediction.
        peak_bytes: peak memory after all rounds.
    """

    setting: str
    file_bytes: int
    task_bytes: int
    max_abs_diff: float
    flips: int
    seconds: dict[str, list[float]]
    start_s: list[float]
    resident_bytes: int
    peak_bytes: int

    def add(self, workload: str, sample: Sample) -> None:
        """Add the sample of a round."""
        self.seconds[workload].append(sample.seconds)
        self.peak_bytes = sample.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedResults:
    """The measurements of all systems.

    Attributes:
        systems: by name, in the given order; ratios are relative to the first.
        left_out: systems that could not be measured, with the reason.
        peak_rates: the machine's peak rates, measured once per workload; see machine_peak.py.
    """

    systems: dict[str, SystemResult]
    left_out: dict[str, str]
    peak_rates: dict[str, list[float]]

    @property
    def first(self) -> str:
        """Name of the system that the others are compared with."""
        return next(iter(self.systems))

    def median_s(self, name: str, workload: str) -> float:
        """Return a system's median latency in seconds."""
        return statistics.median(self.systems[name].seconds[workload])

    def slowdowns(self, name: str, workload: str) -> list[float]:
        """Return a system's latency divided by the first system's, per round."""
        pairs = zip(self.systems[name].seconds[workload], self.systems[self.first].seconds[workload], strict=True)
        return [other / first for other, first in pairs]


def measure(
    contenders: Sequence[Contender], workloads: Workloads, plan: RoundPlan, hardware: Hardware, progress: Progress
) -> SpeedResults:
    """Measure systems.

    Args:
        contenders: systems; the others are compared with the first.
        workloads: texts of the calls.
        plan: how much is measured.
        hardware: hardware that each system may use.
        progress: receives the number of rounds as rows.

    Raises:
        BenchError: the first system fails, or two have the same name.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        repeated = max(names, key=names.count)
        raise BenchError(f"two systems have the name {repeated!r}; name each once, or rename a bundle's folder")
    left_out: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    total = len(workloads.batches) * plan.rounds
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(c.start()) for c in contenders}
        systems = _open_all(contenders, workers, workloads, left_out)
        machine = stack.enter_context(
            Worker("machine peak", PEAK_WORKER, hardware.arguments(), threads=hardware.threads)
        )
        for number, (workload, batches) in enumerate(workloads.batches.items()):
            for rate, value in machine.request("measure").items():
                rates.setdefault(rate, []).append(value)
            rounds = _run_rounds({name: workers[name] for name in systems}, batches, plan, left_out)
            for done, samples in enumerate(rounds, 1):
                progress.rows(number * plan.rounds + done, total)
                for name, sample in samples.items():
                    systems[name].add(workload, sample)
            for name in left_out:
                systems.pop(name, None)
        progress.rows(total, total)
    for contender in [c for c in contenders if c.name in systems] * plan.starts:
        _time_start(contender, workloads.compared[0], systems[contender.name])
    return SpeedResults(systems=systems, left_out=left_out, peak_rates=rates)


def _open_all(
    contenders: Sequence[Contender], workers: Mapping[str, Worker], workloads: Workloads, left_out: dict[str, str]
) -> dict[str, SystemResult]:
    """Wait until all systems are open, and compare their logits with the first one's."""
    systems: dict[str, SystemResult] = {}
    expected = np.zeros(())
    for number, contender in enumerate(contenders):
        try:
            opened = workers[contender.name].receive()
            responses = [workers[contender.name].request(batch) for batch in workloads.compared]
        except BenchError as e:
            if not number:
                raise
            left_out[contender.name] = str(e)
            continue
        logits = np.array([own for response in responses for own in response["logits"]])
        expected = expected if number else logits
        difference = float(np.abs(logits - expected).max())
        if contender.tolerance is not None and not difference <= contender.tolerance * np.ptp(expected):
            left_out[contender.name] = (
                f"a logit differs by {difference:.2g} from that of {contenders[0].name} (range of its logits: "
                f"{np.ptp(expected):.2g}); systems with other predictions are not timed"
            )
            continue
        systems[contender.name] = SystemResult(
            setting=opened["setting"],
            file_bytes=opened["files"],
            task_bytes=opened["task_files"],
            max_abs_diff=difference,
            flips=int((logits.argmax(1) != expected.argmax(1)).sum()),
            seconds={workload: [] for workload in workloads.batches},
            start_s=[],
            resident_bytes=responses[0]["resident_bytes"],
            peak_bytes=responses[-1]["peak_bytes"],
        )
    return systems


def _run_rounds(
    workers: Mapping[str, Worker], batches: Callable[[int], Batch], plan: RoundPlan, left_out: dict[str, str]
) -> Iterator[dict[str, Sample]]:
    """Run rounds after a warm-up, each starting with another system; leave out a system whose process ends."""
    names = list(workers)
    main = names[0]
    started = time.perf_counter()
    calls = map(batches, itertools.count())
    n_calls = 1
    for number in range(-WARM_UP, plan.rounds):
        if number >= plan.few_rounds and time.perf_counter() - started > plan.seconds:
            return
        of_round = list(itertools.islice(calls, n_calls))
        samples: dict[str, Sample] = {}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE_S)
            try:
                samples[name] = _sample(workers[name], of_round)
            except BenchError as e:
                if name == main:
                    raise
                left_out[name] = str(e)
        names = [name for name in names if name in samples]
        if number >= 0:
            yield samples
        else:
            n_calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_S / samples[main].seconds)))


def _sample(worker: Worker, calls: Sequence[Batch]) -> Sample:
    responses = [worker.request(batch) for batch in calls]
    return Sample(statistics.median(response["seconds"] for response in responses), responses[-1]["peak_bytes"])


def _time_start(contender: Contender, batch: Batch, result: SystemResult) -> None:
    """Time a process from its start to its first prediction."""
    started = time.perf_counter()
    with contender.start() as worker:
        worker.receive()
        response = worker.request(batch)
        result.start_s.append(time.perf_counter() - started)
        result.resident_bytes = response["resident_bytes"]


def bundle_name(path: Path, precision: str) -> str:
    """Name a bundle in a report: its folder, and its precision unless the folder's name contains it."""
    name = path.resolve().name
    return name if precision in name.split("-") else f"{name}, {precision}"


def describe_method(plan: RoundPlan, hardware: Hardware) -> list[str]:
    """Describe the method in sentences for a report."""
    gpu = "" if hardware.provider == "cpu" else f" and on {hardware.provider}, whose memory is not measured"
    return [
        (
            f"Each system runs in its own process on the same {hardware.threads} CPUs{gpu}. In a round, all systems "
            f"run the same calls one after the other, {PAUSE_S:g} s apart, so that the threads of one have stopped "
            "spinning before the next starts. Each round starts with another system."
        ),
        (
            f"A sample is the latency of one call or, if calls are short, the median of up to {MOST_CALLS} calls with "
            f"other texts each. After {WARM_UP} warm-up round, {plan.rounds} rounds are timed, or at least "
            f"{plan.few_rounds} if they take more than {plan.seconds:.0f} s."
        ),
    ]
