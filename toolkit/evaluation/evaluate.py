"""Labelled rows -> predictions and figures of a bundle, and the differences between two bundles. Needs no torch."""

import heapq
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import CHUNK_TEXTS, Task
from ptexport.runtime.errors import DataError
from ptexport.runtime.label_rows import predict_rows
from ptexport.runtime.rows.row import Row, check_label, check_texts
from ptexport.toolkit.evaluation.metrics import (
    N_CONFUSED,
    N_WORST,
    Contrast,
    Evaluation,
    Latency,
    metrics_of,
    worst_mistakes,
)

N_TIMED = 100
_ADVICE = "correct the row, or choose a bundle with that label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures, and the labels and predictions they are computed from.

    Attributes:
        evaluation: the figures.
        wanted: number of each row's label, int64 [rows].
        got: number of each row's predicted label, int64 [rows].
    """

    evaluation: Evaluation
    wanted: NDArray[np.int64]
    got: NDArray[np.int64]


def check_comparable(tasks: Sequence[Task]) -> None:
    """Check that tasks of different bundles can be compared.

    Raises:
        DataError: they have different labels, or take different texts.
    """
    first, *others = tasks
    for other in others:
        if other.labels != first.labels:
            got = f"labels {', '.join(first.labels[:20])} and {', '.join(other.labels[:20])}"
            raise DataError(f"bundles: {got}; compare bundles with the same labels in one order")
        if other.entry.fields != first.entry.fields:
            got = f"{first.entry.fields} and {other.entry.fields}"
            raise DataError(f"bundles: rows of {got}; compare bundles that take the same texts")


def evaluate(
    engine: Engine,
    rows: Iterable[Row],
    report: Callable[[int], None],
    *,
    task: str | None = None,
    keep_texts: bool = False,
) -> Result:
    """Evaluate a task of a bundle.

    Args:
        engine: the open bundle.
        rows: rows with labels, at least one; read once, and not kept except for those that are timed.
        report: called with the number of rows done.
        task: name of the task; None: the only one.
        keep_texts: whether the listed mistakes have their texts.

    Raises:
        DataError: a row has a label that the task does not have, or texts that its template does not take (names the
            line).
    """
    chosen = engine.task(task)
    seen, sample = _Seen(_numbered(chosen.labels), keep_texts=keep_texts), _Sample()
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_TEXTS)):
        for row in chunk:
            check_texts(row, chosen.entry.fields)
            check_label(row, seen.numbers_of(row), _ADVICE)
        sample.add(chunk)
        started = time.perf_counter()
        for row, prediction in predict_rows(chosen, chunk):
            seen.add(row, prediction)
        seen.seconds += time.perf_counter() - started
        report(len(seen.labels))
    return _result(engine, chosen, seen, _latency(chosen, sample.rows, len(seen.labels) / seen.seconds))


@dataclass(slots=True)
class _Seen:
    """Labels and predictions so far, by number."""

    numbers: dict[str, int]
    keep_texts: bool
    labels: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    in_top_k: list[bool] = field(default_factory=list)
    most_choices: int = 0
    mistakes: list[tuple[float, int, list[str]]] = field(default_factory=list)  # heap: probability, -row, texts
    seconds: float = 0.0

    def numbers_of(self, row: Row) -> dict[str, int]:
        """Number the labels, or the candidates of a multiple choice."""
        return self.numbers if row.choices is None else _numbered(row.choices)

    def add(self, row: Row, prediction: Prediction) -> None:
        """Add a row whose label was checked."""
        numbers, best = self.numbers_of(row), prediction.surest
        self.labels.append(numbers[str(row.label)])
        self.predicted.append(numbers[best])
        self.probabilities.append(prediction.probabilities[best])
        self.given.append(prediction.label is not None)
        self.in_top_k.append(row.label in prediction.probabilities)
        self.most_choices = max(self.most_choices, len(row.choices or ()))
        if self.keep_texts and best != row.label:
            texts = [row.text, *(() if row.text_b is None else (row.text_b,)), *(row.choices or ())]
            heapq.heappush(self.mistakes, (self.probabilities[-1], -len(self.labels), texts))
            if len(self.mistakes) > N_WORST:
                heapq.heappop(self.mistakes)


class _Sample:
    """Rows spread evenly over all rows, at most `N_TIMED`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._seen = 0
        self._stride = 1

    def add(self, chunk: Sequence[Row]) -> None:
        self.rows += [row for number, row in enumerate(chunk, self._seen) if number % self._stride == 0]
        self._seen += len(chunk)
        while len(self.rows) > N_TIMED:
            self.rows, self._stride = self.rows[::2], 2 * self._stride


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _result(engine: Engine, task: Task, seen: _Seen, latency: Latency) -> Result:
    names = [str(number) for number in range(seen.most_choices)] or task.labels
    wanted, got, given = np.array(seen.labels), np.array(seen.predicted), np.array(seen.given)
    probabilities = np.array(seen.probabilities)
    is_open = task.entry.labels is None
    counts = np.bincount(wanted, minlength=len(names))
    most = np.argsort(-counts, kind="stable")[: min(N_CONFUSED, np.count_nonzero(counts))]
    shown = most if is_open else np.arange(len(names))
    evaluation = Evaluation(
        bundle=engine.manifest.name,
        task=task.entry.name,
        digest=engine.manifest.digest,
        n_rows=len(wanted),
        labels=[names[number] for number in shown],
        top_k_accuracy=float(np.mean(seen.in_top_k)) if is_open else None,
        coverage=float(given.mean()),
        answered_accuracy=float((wanted == got)[given].mean()) if given.any() else 0.0,
        latency=latency,
        worst=worst_mistakes(wanted, got, probabilities, names, {-row: texts for _, row, texts in seen.mistakes}),
        **metrics_of(wanted, got, probabilities, len(names), shown),
    )
    return Result(evaluation=evaluation, wanted=wanted, got=got)


def contrast(first: Result, second: Result) -> Contrast:
    """Compare two bundles on the same rows."""
    wanted, one, two = first.wanted, first.got, second.got
    return Contrast(
        agreement=float((one == two).mean()),
        only_first_right=int(((one == wanted) & (two != wanted)).sum()),
        only_second_right=int(((one != wanted) & (two == wanted)).sum()),
        differing=(np.flatnonzero(one != two) + 1).tolist(),
    )


def _latency(task: Task, rows: list[Row], rows_per_s: float) -> Latency:
    times_ms = []
    for row in rows:
        started = time.perf_counter()
        list(predict_rows(task, [row]))
        times_ms.append(1000 * (time.perf_counter() - started))
    return Latency(
        timed=len(rows),
        p50_ms=statistics.median(times_ms),
        p99_ms=float(np.quantile(times_ms, 0.99)),
        rows_per_s=rows_per_s,
    )
