"""Labels and predictions -> figures of an evaluation.

A row is named by its number, from 1. Figures hold no texts, except those of mistakes where they are asked for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

N_BINS = 15
N_WORST = 10
N_CONFUSED = 12
"""Labels of an open vocabulary in the confusion matrix, the most frequent."""
_Z = 1.96  # of a 95 % interval


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


class Mistake(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A wrong prediction.

    Attributes:
        row: number of the row, from 1.
        label: its label.
        answer: the predicted label.
        probability: probability of the predicted label.
        texts: the row's texts; of a multiple choice the text and the candidates; None: not asked for.
    """

    row: int
    label: str
    answer: str
    probability: float
    texts: list[str] | None = None


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
        support: number of rows of each of `labels`.
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
    support: list[int]
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


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share (Wilson 1927, JASA 22:209), 0 to 1."""
    share, spread = right / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Compute a 95 % interval of the difference of two accuracies on the same rows, -1 to 1.

    Source: Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37:479.

    Args:
        gained: rows that only the second predicts correctly.
        lost: rows that only the first predicts correctly.
        n: number of rows.
    """
    more, less = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    return max(-1.0, more - less - half), min(1.0, more - less + half)


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
        "support": np.bincount(wanted, minlength=n_labels)[shown].tolist(),
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
    wanted: NDArray[np.int64],
    got: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    texts: Mapping[int, list[str]],
) -> list[Mistake]:
    """List the wrong predictions with the highest probability, at most `N_WORST`.

    Args:
        wanted: as in `metrics_of`.
        got: as in `metrics_of`.
        probabilities: as in `metrics_of`.
        labels: names of the labels.
        texts: texts of these rows, by number from 1; empty: they are not asked for.
    """
    wrong = np.flatnonzero(wanted != got)
    first = wrong[np.argsort(-probabilities[wrong], kind="stable")][:N_WORST]
    return [
        Mistake(
            row=int(i) + 1,
            label=labels[wanted[i]],
            answer=labels[got[i]],
            probability=float(probabilities[i]),
            texts=texts.get(int(i) + 1),
        )
        for i in first
    ]
