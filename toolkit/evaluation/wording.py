"""Figures of an evaluation -> the sentences and rows that tables and pages show."""

from collections.abc import Sequence

from ptexport.runtime.engine.task import OPEN_VOCABULARY_TOP_K
from ptexport.toolkit.evaluation.metrics import Contrast, Evaluation, paired_interval, wilson_interval

_N_CONFUSIONS = 3
LABEL_HEADINGS = ("label", "rows", "correct", "F1", "predicted instead")
MISTAKE_HEADINGS = ("row", "label", "predicted", "probability", "text")
ABSTENTION_NOTE = (
    "Rows without a predicted label count by their most probable label, except in the accuracy of rows with a label."
)
"""Note about figures of a bundle that abstains."""


def headings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Make column headings from the names of bundles; bundles of the same name get the start of their digests."""
    names = [e.bundle if e.task == e.bundle else f"{e.bundle}, task {e.task}" for e in evaluations]
    shown = zip(names, evaluations, strict=True)
    return [name if names.count(name) == 1 else f"{name} {e.digest[:8]}" for name, e in shown]


def verdict(evaluations: Sequence[Evaluation], contrast: Contrast | None) -> str:
    """State in one sentence how accurate a bundle is, or which of two is more accurate."""
    n, names = evaluations[0].n_rows, headings(evaluations)
    if contrast is not None:
        first, other = evaluations
        return compare_accuracy(first, other, contrast, *names)
    right = round(evaluations[0].accuracy * n)
    low, high = wilson_interval(right, n)
    accuracy = f"{100 * right / n:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    return f"{names[0]} has an accuracy of {accuracy}: {right} of {n} rows are predicted correctly."


def compare_accuracy(first: Evaluation, other: Evaluation, contrast: Contrast, first_name: str, name: str) -> str:
    """State whether a bundle is more or less accurate than the first, or that there is no measurable difference.

    Args:
        first: the first bundle's evaluation.
        other: the other's, on the same rows.
        contrast: their comparison.
        first_name: name of the first in the sentence.
        name: name of the other in the sentence.
    """
    n = first.n_rows
    low, high = (100 * end for end in paired_interval(contrast.only_second_right, contrast.only_first_right, n))
    shares = f"{100 * other.accuracy:.1f} and {100 * first.accuracy:.1f} % of {n} rows"
    if low <= 0 <= high:
        interval = f"{low:+.1f} to {high:+.1f} points"
        return f"{name} and {first_name} show no measurable difference in accuracy ({interval}): {shares}."
    points, word = 100 * abs(other.accuracy - first.accuracy), "more" if low > 0 else "less"
    interval = f"95 % interval {min(abs(low), abs(high)):.1f} to {max(abs(low), abs(high)):.1f} points"
    return f"{name} is {points:.1f} points {word} accurate than {first_name} ({interval}): {shares}."


def label_rows(evaluation: Evaluation) -> list[list[str]]:
    """Format the figures of each label: a row per label with the headings `LABEL_HEADINGS`."""
    columns = zip(evaluation.labels, evaluation.support, evaluation.confusion, evaluation.f1, strict=True)
    return [
        [label, str(rows), str(counts[number]), f"{f1:.3f}", _confusions(evaluation, number)]
        for number, (label, rows, counts, f1) in enumerate(columns)
    ]


def mistake_rows(evaluation: Evaluation, *, most_characters: int) -> list[list[str]]:
    """Format the mistakes: a row each with the headings `MISTAKE_HEADINGS`, and its texts if it has them.

    Args:
        evaluation: the evaluation.
        most_characters: length at which texts are cut.
    """
    rows = []
    for mistake in evaluation.worst:
        row = [str(mistake.row), mistake.label, mistake.answer, f"{mistake.probability:.3f}"]
        if mistake.texts is not None:
            text = " ".join(" | ".join(mistake.texts).split())
            row.append(text if len(text) <= most_characters else f"{text[:most_characters]} …")
        rows.append(row)
    return rows


def summary(evaluation: Evaluation, *, abstains: bool) -> dict[str, str]:
    """Format the scalar figures, for tables and pages; with `abstains`, also those of rows with a predicted label."""
    latency, top_k = evaluation.latency, evaluation.top_k_accuracy
    covered = {
        "rows with a predicted label": f"{evaluation.coverage:.1%}",
        "accuracy on those rows": f"{evaluation.answered_accuracy:.1%}",
    }
    return {
        "accuracy": f"{evaluation.accuracy:.1%}",
        **({} if top_k is None else {f"top-{OPEN_VOCABULARY_TOP_K} accuracy": f"{top_k:.1%}"}),
        **(covered if abstains else {}),
        "macro-F1": f"{evaluation.macro_f1:.3f}",
        "expected calibration error": f"{evaluation.calibration_error:.3f}",
        "latency of one row, median (ms)": f"{latency.p50_ms:.1f}",
        "latency of one row, p99 (ms)": f"{latency.p99_ms:.1f}",
        "throughput in batches (rows/s)": f"{latency.rows_per_s:,.0f}",
    }


def _confusions(evaluation: Evaluation, number: int) -> str:
    """List the labels that the rows of a label got instead, the most frequent first."""
    wrong = [(count, n) for n, count in enumerate(evaluation.confusion[number]) if count and n != number]
    most = sorted(wrong, key=lambda pair: -pair[0])
    words = [f"{evaluation.labels[n]} {count}" for count, n in most[:_N_CONFUSIONS]]
    return ", ".join(words) + (", …" if len(most) > _N_CONFUSIONS else "")
