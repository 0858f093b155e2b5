"""Labels and predictions -> figures of an evaluation.

Figures hold no texts: a row is named by its number, from 1.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.engine.task import OPEN_VOCABULARY_TOP_K

N_BINS = 15
N_WORST = 10
N_CONFUSED = 12
"""Labels of an open vocabulary in the confusion table, the most frequent."""


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose predicted labels have about the same probability.

    Attributes:
        rows: number of rows.
        confidence: mean probability of the predicted labels.
        accuracy: share of correct predictions.
    """

    rows: int
    confidence: float
    accuracy: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and throughput on this machine, from text to prediction.

    Attributes:
        timed: rows predicted one at a time, spread evenly over the data.
        p50_ms: their median latency.
        p99_ms: their 99th percentile.
        rows_per_s: throughput over all rows, in batches.
    """

    timed: int
    p50_ms: float
    p99_ms: float
    rows_per_s: float


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """A wrong prediction: the row's number from 1, its label, the predicted label and that label's probability."""

    row: int
    label: str
    answer: str
    probability: float


ABSTENTION_NOTE = (
    "Rows without a predicted label count by their most probable label, except in the accuracy of rows with a label."
)
"""Note about figures of a bundle that abstains."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a bundle's task on labelled rows. Shares are 0 to 1.

    Attributes:
        bundle: name of the bundle.
        task: name of the task.
        digest: digest of the manifest.
        n_rows: number of rows.
        labels: labels in the order of the logits; of an open vocabulary the most frequent, at most `N_CONFUSED`; of
            multiple choices the candidates' numbers in their rows, from 0.
        accuracy: share of rows whose most probable label is correct.
        top_k_accuracy: share of rows whose label is among the `OPEN_VOCABULARY_TOP_K` most probable; None unless the
            vocabulary is open.
        coverage: share of rows with a predicted label.
        answered_accuracy: accuracy on those rows; 0 if there are none.
        macro_f1: mean of `f1` over the labels that occur in the rows or the predictions, as in scikit-learn.
        f1: F1 of each of `labels`; 0 for a label that occurs in neither.
        confusion: counts by label, then by predicted label, of `labels`.
        calibration_error: expected calibration error over `N_BINS` equal bins of the prediction's probability
            (Guo et al. 2017, arXiv:1706.04599, equation 3).
        reliability: those bins, the lowest probability first; empty ones included.
        latency: latency and throughput.
        worst: wrong predictions with the highest probability, at most `N_WORST`.
    """

    bundle: str
    task: str
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
        agreement: share of rows with the same prediction.
        only_first_right: rows that only the first predicts correctly.
        only_second_right: rows that only the second predicts correctly.
        differing: numbers of the rows with different predictions.
    """

    agreement: float
    only_first_right: int
    only_second_right: int
    differing: list[int]


def headings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Make column headings from the names of bundles; bundles of the same name get the start of their digests."""
    names = [e.bundle if e.task == e.bundle else f"{e.bundle}, task {e.task}" for e in evaluations]
    shown = zip(names, evaluations, strict=True)
    return [name if names.count(name) == 1 else f"{name} {e.digest[:8]}" for name, e in shown]


def summary(evaluation: Evaluation) -> dict[str, str]:
    """Format the scalar figures, for tables and pages."""
    latency, top_k = evaluation.latency, evaluation.top_k_accuracy
    return {
        "accuracy": f"{evaluation.accuracy:.1%}",
        **({} if top_k is None else {f"top-{OPEN_VOCABULARY_TOP_K} accuracy": f"{top_k:.1%}"}),
        "rows with a predicted label": f"{evaluation.coverage:.1%}",
        "accuracy on those rows": f"{evaluation.answered_accuracy:.1%}",
        "macro-F1": f"{evaluation.macro_f1:.3f}",
        "expected calibration error": f"{evaluation.calibration_error:.3f}",
        "latency of one row, median": f"{latency.p50_ms:.1f} ms",
        "latency of one row, 99th percentile": f"{latency.p99_ms:.1f} ms",
        "throughput in batches": f"{latency.rows_per_s:.0f} rows/s",
    }


def metrics_of(
    wanted: NDArray[np.int64],
    got: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    n_labels: int,
    shown: NDArray[np.int64],
) -> dict[str, Any]:
    """Compute the figures of `Evaluation` that need labels and predictions alone.

    Args:
        wanted: number of each row's label, int64 [rows].
        got: number of each row's predicted label, int64 [rows].
        probabilities: probability of each prediction, float64 [rows].
        n_labels: number of labels.
        shown: numbers of the labels that `f1` and `confusion` have.
    """
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


def worst_mistakes(
    wanted: NDArray[np.int64], got: NDArray[np.int64], probabilities: NDArray[np.float64], labels: Sequence[str]
) -> list[Mistake]:
    """List the wrong predictions with the highest probability, at most `N_WORST`; arguments as in `metrics_of`."""
    wrong = np.flatnonzero(wanted != got)
    first = wrong[np.argsort(-probabilities[wrong], kind="stable")][:N_WORST]
    return [
        Mistake(
            row=int(i) + 1,
            label=labels[wanted[i]],
            answer=labels[got[i]],
            probability=float(probabilities[i]),
        )
        for i in first
    ]
