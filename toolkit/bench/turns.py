"""Systems in processes of their own, asked the same in turn, and what was seen of them."""

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
from ptexport.toolkit.bench.workers import CEILING, WORKER, Hardware, Worker, placed

Texts = Sequence[str | Sequence[str]]
"""Texts of one call, or pairs of texts."""

WARM_UP = 1  # turns, of one call: it makes room for a new shape
MOST_CALLS = 10
TURN_S = 0.1  # that the first system's calls take in a turn, if one takes less
PAUSE_S = 0.2  # until the threads of the one before have stopped spinning


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: turns that each system has at a load, after the warm-up.
        few_rounds: turns that it has at least, where the seconds are over.
        seconds: after which there are no more turns at a load.
        starts: processes started to time the start.
    """

    rounds: int
    few_rounds: int = 6  # fewer do not tell where the median lies with 95 %
    seconds: float
    starts: int


FULL = Plan(rounds=15, seconds=60, starts=3)
QUICK = Plan(rounds=9, seconds=12, starts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A system to measure.

    Attributes:
        name: in the report.
        start: starts its process.
        tolerance: most that a logit may differ from the first one's, as a share of the range of that one's logits;
            None: it is only shown.
    """

    name: str
    start: Callable[[], Worker]
    tolerance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What systems are asked.

    Attributes:
        texts: by name of the load, what makes the texts of a call; texts of another call differ.
        compared: calls whose answers are compared before any is timed.
    """

    texts: Mapping[str, Callable[[int], Texts]]
    compared: Sequence[Texts]


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a turn: seconds a call, the median, and the bytes that the process had at most so far."""

    seconds: float
    peak_bytes: int


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was seen of a system.

    Attributes:
        setting: what it runs with.
        file_bytes: that a device must hold.
        task_bytes: of those, new for another task.
        max_abs_diff: largest difference of a logit from the first system's.
        flips: rows, of those compared, with another label.
        seconds: a call, the median of each turn, by load; turn k of all systems is of the same texts.
        start_s: from starting a process to its first answer, of each.
        resident_bytes: after the first answer.
        peak_bytes: at most, after all turns.
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

    def note(self, load: str, answer: Answer) -> None:
        """Add a turn at a load."""
        self.seconds[load].append(answer.seconds)
        self.peak_bytes = answer.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was seen of all.

    Attributes:
        systems: by name, in the order asked for; the first is what the others are held against.
        left_out: systems that could not be measured, with the reason.
        ceiling: rates of the machine, each measured once a load; see ceiling.py.
    """

    systems: dict[str, Measured]
    left_out: dict[str, str]
    ceiling: dict[str, list[float]]

    @property
    def first(self) -> str:
        """What the others are held against."""
        return next(iter(self.systems))

    def median_s(self, name: str, load: str) -> float:
        """Median of a system's turns at a load."""
        return statistics.median(self.systems[name].seconds[load])

    def ratios(self, name: str, load: str) -> list[float]:
        """How many times as long as the first system another takes, turn by turn."""
        pairs = zip(self.systems[name].seconds[load], self.systems[self.first].seconds[load], strict=True)
        return [theirs / ours for theirs, ours in pairs]


def measure(
    contenders: Sequence[Contender], loads: Loads, plan: Plan, hardware: Hardware, report: Callable[[int, int], None]
) -> Results:
    """Measure.

    Args:
        contenders: the first is what the others are held against.
        loads: what they are asked.
        plan: how much.
        hardware: that each may use.
        report: told how many turns are done, of how many.

    Raises:
        BenchError: the first system fails, or two have one name.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise BenchError(f"two are called {max(names, key=names.count)!r}; name each once, or rename a bundle's folder")
    left_out: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    total = len(loads.texts) * plan.rounds
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(c.start()) for c in contenders}
        systems = _open_all(contenders, workers, loads, left_out)
        machine = stack.enter_context(Worker("ceiling", CEILING, placed(hardware), threads=hardware.threads))
        for number, (load, texts_of) in enumerate(loads.texts.items()):
            for what, rate in machine.ask("measure").items():
                rates.setdefault(what, []).append(rate)
            turns = _take_turns({name: workers[name] for name in systems}, texts_of, plan, left_out)
            for done, answers in enumerate(turns, 1):
                report(number * plan.rounds + done, total)
                for name, answer in answers.items():
                    systems[name].note(load, answer)
            for name in left_out:
                systems.pop(name, None)
        report(total, total)
    for contender in [c for c in contenders if c.name in systems] * plan.starts:
        _start(contender, loads.compared[0], systems[contender.name])
    return Results(systems=systems, left_out=left_out, ceiling=rates)


def _open_all(
    contenders: Sequence[Contender], workers: Mapping[str, Worker], loads: Loads, left_out: dict[str, str]
) -> dict[str, Measured]:
    """Wait until all are open, and compare their answers with the first one's."""
    systems: dict[str, Measured] = {}
    expected = np.zeros(())
    for number, contender in enumerate(contenders):
        try:
            opened = workers[contender.name].read()
            answers = [workers[contender.name].ask(some) for some in loads.compared]
        except BenchError as e:
            if not number:
                raise
            left_out[contender.name] = str(e)
            continue
        logits = np.array([row for answer in answers for row in answer["logits"]])
        expected = expected if number else logits
        difference = float(np.abs(logits - expected).max())
        if contender.tolerance is not None and not difference <= contender.tolerance * np.ptp(expected):
            left_out[contender.name] = (
                f"a logit differs by {difference:.2g} from {contenders[0].name}'s, which range over "
                f"{np.ptp(expected):.2g}: what answers otherwise is not timed"
            )
            continue
        systems[contender.name] = Measured(
            setting=opened["setting"],
            file_bytes=opened["files"],
            task_bytes=opened["task_files"],
            max_abs_diff=difference,
            flips=int((logits.argmax(1) != expected.argmax(1)).sum()),
            seconds={load: [] for load in loads.texts},
            start_s=[],
            resident_bytes=answers[0]["resident_bytes"],
            peak_bytes=answers[-1]["peak_bytes"],
        )
    return systems


def _take_turns(
    workers: Mapping[str, Worker], texts_of: Callable[[int], Texts], plan: Plan, left_out: dict[str, str]
) -> Iterator[dict[str, Answer]]:
    """Ask each the same texts, another first each time, warmed up; one that ends is left out."""
    names = list(workers)
    main = names[0]
    started = time.perf_counter()
    calls = map(texts_of, itertools.count())
    n_calls = 1
    for number in range(-WARM_UP, plan.rounds):
        if number >= plan.few_rounds and time.perf_counter() - started > plan.seconds:
            return
        asked = list(itertools.islice(calls, n_calls))
        answers: dict[str, Answer] = {}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE_S)
            try:
                answers[name] = _ask_calls(workers[name], asked)
            except BenchError as e:
                if name == main:
                    raise
                left_out[name] = str(e)
        names = [name for name in names if name in answers]
        if number >= 0:
            yield answers
        else:
            n_calls = max(1, min(MOST_CALLS, math.ceil(TURN_S / answers[main].seconds)))


def _ask_calls(worker: Worker, calls: Sequence[Texts]) -> Answer:
    answers = [worker.ask(texts) for texts in calls]
    return Answer(statistics.median(answer["seconds"] for answer in answers), answers[-1]["peak_bytes"])


def _start(contender: Contender, texts: Texts, measured: Measured) -> None:
    """Time a process from its start to its first answer."""
    started = time.perf_counter()
    with contender.start() as worker:
        worker.read()
        answer = worker.ask(texts)
        measured.start_s.append(time.perf_counter() - started)
        measured.resident_bytes = answer["resident_bytes"]


def shown_name(path: Path, precision: str) -> str:
    """Name a bundle in a report: its folder, and its precision where that does not say it."""
    name = path.resolve().name
    return name if precision in name.split("-") else f"{name}, {precision}"


def bundle_worker(name: str, path: str, hardware: Hardware) -> Callable[[], Worker]:
    """What starts the process of a bundle."""
    return lambda: Worker(name, WORKER, ["serve", "bundle", "", path, *placed(hardware)], threads=hardware.threads)


def how_measured(plan: Plan, hardware: Hardware) -> list[str]:
    """Say how, for a report."""
    gpu = "" if hardware.provider == "cpu" else f" and to {hardware.provider}, whose memory is not measured"
    apart = (
        f"Each system has a process of its own, held to the same {hardware.threads} CPUs{gpu}; they take turns, "
        f"{PAUSE_S:g} s apart so that one's threads have stopped spinning before the next begins; who is first rotates."
    )
    turns = (
        f"A turn is one call or, of short ones, up to {MOST_CALLS} with other texts each, of which the median counts. "
        f"One turn warms up, then {plan.rounds} are timed, or {plan.few_rounds} at least where they would take "
        f"more than {plan.seconds:.0f} s in all."
    )
    return [apart, turns]
