"""An opened bundle + labelled rows -> figures; two bundles -> where they differ. Without torch.

Texts are not kept: rows are named by number, counted from 1.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.engine.engine import OPEN_VOCABULARY_TOP_K, Engine
from ptexport.runtime.engine.turns import CHUNK_TEXTS
from ptexport.runtime.errors import DataError
from ptexport.runtime.label_file import predict_rows
from ptexport.runtime.rows import Row, check_label, check_texts

N_BINS = 15
N_WORST = 10
N_TIMED = 100
N_CONFUSED = 12
"""Labels, those of the most rows, that are counted one by one where every word of the vocabulary is one."""
_ADVICE = "mend the row, or choose a bundle with that label"


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose answer had about the same probability.

    Attributes:
        rows: how many.
        confidence: mean probability of their answers.
        accuracy: share answered right.
    """

    rows: int
    confidence: float
    accuracy: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Times on this machine, text to answer.

    Attributes:
        timed: rows asked one at a time, spread evenly over the data.
        p50_ms: median of those.
        p99_ms: 99 of 100 of those took at most this.
        rows_per_s: of all rows, in batches.
    """

    timed: int
    p50_ms: float
    p99_ms: float
    rows_per_s: float


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """A row answered wrong: its number among the rows, from 1, its label, the answer and the answer's probability."""

    row: int
    label: str
    answer: str
    probability: float


UNSURE = "Rows too unsure for a label count by their most probable one, but for the accuracy of those given a label."
"""What a reader must know where a bundle abstains."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle does on labelled rows. Shares are 0 to 1.

    Attributes:
        bundle: its name.
        digest: of its manifest.
        n_rows: rows measured on.
        labels: in the order of the logits; with an open vocabulary, those with the most rows, at most `N_CONFUSED`; of
            multiple choices, the numbers of the candidates in their rows, from 0.
        accuracy: share whose most probable label is right.
        top_k_accuracy: share of rows whose label is among the `OPEN_VOCABULARY_TOP_K` most probable; None unless the
            vocabulary is open.
        coverage: share that is given a label at all.
        answered_accuracy: share right of those; 0 if none is.
        macro_f1: mean of `f1` over the labels that the rows or the answers have, as in scikit-learn.
        f1: of each of `labels`; 0 for one that neither has.
        confusion: rows by label, then by answer, of `labels`.
        calibration_error: expected calibration error over `N_BINS` equal bins of the answer's probability
            (Guo et al. 2017, arXiv:1706.04599, equation 3).
        reliability: those bins, the lowest probability first; empty ones included.
        latency: times.
        worst: the surest mistakes, at most `N_WORST`.
    """

    bundle: str
    digest: str
    n_rows: int
    labels: list[str]
    accuracy: float
    top_k_accuracy: float | None
    coverage: float
    answered_accuracy: float
    macro_f1: float
    f1: list[float]
    confusion: list[list[int]]
    calibration_error: float
    reliability: list[Bin]
    latency: Latency
    worst: list[Mistake]


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """Two bundles on the same rows.

    Attributes:
        agreement: share of rows with the same answer.
        only_first_right: rows that the first answers right and the second wrong.
        only_second_right: the other way round.
        differing: numbers of the rows with different answers.
    """

    agreement: float
    only_first_right: int
    only_second_right: int
    differing: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Figures, and what they are of.

    Attributes:
        evaluation: the figures.
        wanted: number of each row's label, int64 [rows].
        got: number of each row's answer, int64 [rows].
    """

    evaluation: Evaluation
    wanted: NDArray[np.int64]
    got: NDArray[np.int64]


def check_comparable(engines: Sequence[Engine]) -> None:
    """Check that bundles can be compared.

    Raises:
        DataError: they have different labels, or take different texts.
    """
    first, *others = engines
    for other in others:
        if other.labels != first.labels:
            got = f"labels {', '.join(first.labels[:20])} and {', '.join(other.labels[:20])}"
            raise DataError(f"bundles: {got}; compare bundles with the same labels in one order")
        if other.manifest.fields != first.manifest.fields:
            got = f"{first.manifest.fields} and {other.manifest.fields}"
            raise DataError(f"bundles: rows of {got}; compare bundles that take the same texts")


def headings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Name bundles for people: two of one name are told apart by their digests."""
    names = [evaluation.bundle for evaluation in evaluations]
    return [e.bundle if names.count(e.bundle) == 1 else f"{e.bundle} {e.digest[:8]}" for e in evaluations]


def summary(evaluation: Evaluation) -> dict[str, str]:
    """Put the figures that fit on a line each into words, for tables and pages."""
    latency, top_k = evaluation.latency, evaluation.top_k_accuracy
    return {
        "accuracy": f"{evaluation.accuracy:.1%}",
        **({} if top_k is None else {f"right among the {OPEN_VOCABULARY_TOP_K} surest": f"{top_k:.1%}"}),
        "given a label": f"{evaluation.coverage:.1%}",
        "accuracy of those given one": f"{evaluation.answered_accuracy:.1%}",
        "macro-F1": f"{evaluation.macro_f1:.3f}",
        "expected calibration error": f"{evaluation.calibration_error:.3f}",
        "one row alone, median": f"{latency.p50_ms:.1f} ms",
        "one row alone, 99 of 100 within": f"{latency.p99_ms:.1f} ms",
        "all rows in batches": f"{latency.rows_per_s:.0f} rows/s",
    }


def evaluate(engine: Engine, rows: Iterable[Row], report: Callable[[int], None]) -> Result:
    """Measure a bundle.

    Args:
        engine: the bundle, opened.
        rows: with labels, at least one; read once, and not kept but for those that are timed.
        report: told how many rows are done.

    Raises:
        DataError: a label the bundle does not have, or texts its template does not take (says which line).
    """
    number_of = _numbered(engine.labels)
    labels, answers, probabilities, given, among_first = [], [], [], [], []
    timed: list[Row] = []
    stride = 1
    most_choices = 0
    seconds = 0.0
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_TEXTS)):
        for row in chunk:
            check_texts(row, engine.manifest.fields)
            numbers = number_of if row.choices is None else _numbered(row.choices)
            labels.append(numbers[check_label(row, numbers, _ADVICE)])
            most_choices = max(most_choices, len(row.choices or ()))
        # Every `stride`-th row; twice as far apart whenever there are too many.
        timed += [row for number, row in enumerate(chunk, len(labels) - len(chunk)) if number % stride == 0]
        while len(timed) > N_TIMED:
            timed, stride = timed[::2], 2 * stride
        started = time.perf_counter()
        for row, prediction in predict_rows(engine, chunk):
            numbers = number_of if row.choices is None else _numbered(row.choices)
            answers.append(numbers[prediction.surest])
            among_first.append(row.label in prediction.probabilities)
            probabilities.append(prediction.probabilities[prediction.surest])
            given.append(prediction.label is not None)
        seconds += time.perf_counter() - started
        report(len(labels))
    names = [str(number) for number in range(most_choices)] or engine.labels
    wanted, got, answered = np.array(labels), np.array(answers), np.array(given)
    is_open = engine.manifest.labels is None
    n_rows = np.bincount(wanted, minlength=len(names))
    most = np.argsort(-n_rows, kind="stable")[: min(N_CONFUSED, np.count_nonzero(n_rows))]
    shown = most if is_open else np.arange(len(names))
    evaluation = Evaluation(
        bundle=engine.manifest.name,
        digest=engine.manifest.digest,
        n_rows=len(labels),
        labels=[names[number] for number in shown],
        top_k_accuracy=float(np.mean(among_first)) if is_open else None,
        coverage=float(answered.mean()),
        answered_accuracy=float((wanted == got)[answered].mean()) if answered.any() else 0.0,
        latency=_latency(engine, timed, len(labels) / seconds),
        worst=_worst(wanted, got, np.array(probabilities), names),
        **_figures(wanted, got, np.array(probabilities), len(names), shown),
    )
    return Result(evaluation=evaluation, wanted=wanted, got=got)


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def contrast(first: Result, second: Result) -> Contrast:
    """Compare two bundles on the same rows."""
    wanted, one, two = first.wanted, first.got, second.got
    return Contrast(
        agreement=float((one == two).mean()),
        only_first_right=int(((one == wanted) & (two != wanted)).sum()),
        only_second_right=int(((one != wanted) & (two == wanted)).sum()),
        differing=(np.flatnonzero(one != two) + 1).tolist(),
    )


def _latency(engine: Engine, rows: list[Row], rows_per_s: float) -> Latency:
    times_ms = []
    for row in rows:
        started = time.perf_counter()
        list(predict_rows(engine, [row]))
        times_ms.append(1000 * (time.perf_counter() - started))
    return Latency(
        timed=len(rows),
        p50_ms=statistics.median(times_ms),
        p99_ms=float(np.quantile(times_ms, 0.99)),
        rows_per_s=rows_per_s,
    )


def _figures(
    wanted: NDArray[np.int64],
    got: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    n_labels: int,
    shown: NDArray[np.int64],
) -> dict[str, Any]:
    place = np.full(n_labels, -1)
    place[shown] = np.arange(len(shown))
    inside = (place[wanted] >= 0) & (place[got] >= 0)
    confusion = np.zeros((len(shown), len(shown)), dtype=np.int64)
    np.add.at(confusion, (place[wanted[inside]], place[got[inside]]), 1)
    right = np.bincount(wanted[wanted == got], minlength=n_labels)
    either = np.bincount(wanted, minlength=n_labels) + np.bincount(got, minlength=n_labels)
    f1 = np.divide(2 * right, either, out=np.zeros(n_labels), where=either > 0)
    bins = _reliability(probabilities, wanted == got)
    error = sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / len(wanted)
    return {
        "accuracy": float((wanted == got).mean()),
        "macro_f1": float(f1[either > 0].mean()),
        "f1": f1[shown].tolist(),
        "confusion": confusion.tolist(),
        "calibration_error": float(error),
        "reliability": bins,
    }


def _reliability(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    index = np.minimum((probabilities * N_BINS).astype(int), N_BINS - 1)
    bins = []
    for number in range(N_BINS):
        inside = index == number
        rows = int(inside.sum())
        means = (float(probabilities[inside].mean()), float(right[inside].mean())) if rows else (0.0, 0.0)
        bins.append(Bin(rows=rows, confidence=means[0], accuracy=means[1]))
    return bins


def _worst(
    wanted: NDArray[np.int64], got: NDArray[np.int64], probabilities: NDArray[np.float64], labels: Sequence[str]
) -> list[Mistake]:
    wrong = np.flatnonzero(wanted != got)
    surest = wrong[np.argsort(-probabilities[wrong], kind="stable")][:N_WORST]
    return [
        Mistake(
            row=int(i) + 1,
            label=labels[wanted[i]],
            answer=labels[got[i]],
            probability=float(probabilities[i]),
        )
        for i in surest
    ]
