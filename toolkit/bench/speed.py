"""A bundle and its rivals, each in a process of its own, taking turns -> a report."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import make_texts
from ptexport.toolkit.bench.workers import Worker

Size = tuple[int, int]
"""Texts in a call, and tokens of each, the prompt not counted."""

WARM_UP = 2
PAUSE_S = 0.2  # until the threads of the one before have stopped spinning
COMPARED: tuple[Size, ...] = ((8, 28), (1, 1), (1, 100))
SIZES: tuple[Size, ...] = tuple((batch, tokens) for tokens in (8, 28, 100, 250) for batch in (1, 8, 32))
QUICK_SIZES: tuple[Size, ...] = ((1, 28), (8, 28), (1, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: of the calls.
        rounds: turns that each system has at a size, after the warm-up.
        few_rounds: turns that it has at least, where the seconds are over.
        seconds: after which there are no more turns at a size.
        starts: processes started to time the start.
    """

    sizes: tuple[Size, ...]
    rounds: int
    few_rounds: int = 3
    seconds: float
    starts: int


FULL = Plan(sizes=SIZES, rounds=9, seconds=60, starts=3)
QUICK = Plan(sizes=QUICK_SIZES, rounds=5, seconds=15, starts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A system to measure.

    Attributes:
        name: in the report.
        start: starts its process.
        tolerance: most that a logit may differ from the first one's; None: it is only shown.
    """

    name: str
    start: Callable[[], Worker]
    tolerance: float | None


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was seen of a system.

    Attributes:
        setting: what it runs with.
        file_bytes: that a device must hold.
        task_bytes: of those, new for another task.
        max_abs_diff: largest difference of a logit from the first system's.
        flips: rows, of those compared, with another label.
        seconds: of each turn, by size; turn k of all systems is of the same texts.
        start_s: from starting a process to its first answer, of each.
        resident_bytes: after the first answer.
        peak_bytes: at most, after all turns.
    """

    setting: str
    file_bytes: int
    task_bytes: int
    max_abs_diff: float
    flips: int
    seconds: dict[Size, list[float]]
    start_s: list[float]
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was seen of all.

    Attributes:
        systems: by name, in the order asked for; the first is what the others are held against.
        left_out: systems that could not be measured, with the reason.
        ceiling: rates of the machine, each measured once a size; see ceiling.py.
    """

    systems: dict[str, Measured]
    left_out: dict[str, str]
    ceiling: dict[str, list[float]]


def measure(
    contenders: Sequence[Contender],
    ceiling: Callable[[], Worker],
    words: Sequence[str],
    plan: Plan,
    report: Callable[[int, int], None],
) -> Results:
    """Measure.

    Args:
        contenders: the first is the bundle.
        ceiling: starts the process that measures the machine.
        words: that texts are made of, one token each.
        plan: how much.
        report: told how many turns are done, of how many.

    Raises:
        BenchError: the first system fails, or no other is left to be compared with it though one was asked for.
    """
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(c.start()) for c in contenders}
        systems = _open_all(contenders, workers, words, left_out)
        rates: dict[str, list[float]] = {}
        machine = stack.enter_context(ceiling())
        for number, size in enumerate(plan.sizes):
            for name, rate in machine.ask("measure").items():
                rates.setdefault(name, []).append(rate)
            turns = _take_turns({name: workers[name] for name in systems}, words, size, plan)
            for done, answers in enumerate(turns):
                report(number * plan.rounds + done + 1, len(plan.sizes) * plan.rounds)
                for name, answer in answers.items():
                    systems[name].seconds[size].append(answer["seconds"])
                    systems[name].peak_bytes = answer["peak_bytes"]
        report(len(plan.sizes) * plan.rounds, len(plan.sizes) * plan.rounds)
    some = make_texts(words, 1, QUICK_SIZES[0][1], "start")
    for _ in range(plan.starts):
        for contender in contenders:
            if contender.name in systems:
                _start(contender, some, systems[contender.name])
    return Results(systems=systems, left_out=left_out, ceiling=rates)


def _open_all(
    contenders: Sequence[Contender], workers: Mapping[str, Worker], words: Sequence[str], left_out: dict[str, str]
) -> dict[str, Measured]:
    """Wait until all are open and compare their answers with the first one's, before any is timed."""
    texts = [make_texts(words, *size, f"compare {size}") for size in COMPARED]
    systems: dict[str, Measured] = {}
    expected = np.zeros(())
    for number, contender in enumerate(contenders):
        try:
            opened = workers[contender.name].read()
            answers = [workers[contender.name].ask(some) for some in texts]
        except BenchError as e:
            if not number:
                raise
            left_out[contender.name] = str(e)
            continue
        logits = np.array([row for answer in answers for row in answer["logits"]])
        expected = expected if number else logits
        difference = float(np.abs(logits - expected).max())
        if contender.tolerance is not None and not difference <= contender.tolerance:
            left_out[contender.name] = (
                f"a logit differs by {difference:.2g} from {contenders[0].name}'s, more than {contender.tolerance:g}: "
                "what answers otherwise is not timed"
            )
            continue
        systems[contender.name] = Measured(
            setting=opened["setting"],
            file_bytes=opened["files"],
            task_bytes=opened["task_files"],
            max_abs_diff=difference,
            flips=int((logits.argmax(1) != expected.argmax(1)).sum()),
            seconds={size: [] for size in FULL.sizes},
            start_s=[],
            resident_bytes=answers[0]["resident_bytes"],
            peak_bytes=answers[-1]["peak_bytes"],
        )
    return systems


def _take_turns(
    workers: Mapping[str, Worker], words: Sequence[str], size: Size, plan: Plan
) -> Iterator[dict[str, dict[str, float]]]:
    """Ask each the same texts, another first each time; the first turns only warm up."""
    names = list(workers)
    started = time.perf_counter()
    for number in range(plan.rounds + WARM_UP):
        done = number - WARM_UP
        if done >= plan.few_rounds and time.perf_counter() - started > plan.seconds:
            return
        texts = make_texts(words, *size, f"{size} {number}")
        answers = {}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE_S)
            answers[name] = workers[name].ask(texts)
        if done >= 0:
            yield answers


def _start(contender: Contender, texts: list[str], measured: Measured) -> None:
    """Time a process from its start to its first answer."""
    started = time.perf_counter()
    with contender.start() as worker:
        worker.read()
        answer = worker.ask(texts)
        measured.start_s.append(time.perf_counter() - started)
        measured.resident_bytes = answer["resident_bytes"]


def ratios(results: Results, name: str, size: Size) -> list[float]:
    """How many times as long as the first system another takes, turn by turn."""
    first = next(iter(results.systems.values()))
    pairs = zip(results.systems[name].seconds[size], first.seconds[size], strict=True)
    return [theirs / ours for theirs, ours in pairs]


def median_ms(seconds: Sequence[float]) -> float:
    """Median, in milliseconds."""
    return 1000 * statistics.median(seconds)
