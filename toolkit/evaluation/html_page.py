"""Evaluations -> one HTML page with plots, a single file that loads nothing else."""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.toolkit.evaluation.metrics import Contrast, Evaluation
from ptexport.toolkit.evaluation.wording import (
    ABSTENTION_NOTE,
    LABEL_HEADINGS,
    MISTAKE_HEADINGS,
    headings,
    label_rows,
    mistake_rows,
    summary,
    verdict,
)
from ptexport.toolkit.html import ACCENT, MUTED, draw_figure, draw_table, read_template, render
from ptexport.toolkit.store.files import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_MOST_LABELS = 20  # in the plot of the confusion matrix
_MOST_CHARACTERS = 1000  # of a text


def write_page(path: Path, evaluations: list[Evaluation], contrast: Contrast | None, *, data: str, force: bool) -> None:
    """Write the page.

    Args:
        path: file to write.
        evaluations: evaluations of one bundle or two.
        contrast: comparison of the two; None: there is one.
        data: name of the data set.
        force: replace the file if it exists.

    Raises:
        OutputError: the file exists and `force` is false, or the file cannot be written.
    """
    abstains = any(evaluation.coverage < 1 for evaluation in evaluations)
    names = headings(evaluations)
    figures = [summary(evaluation, abstains=abstains) for evaluation in evaluations]
    html = render(
        f"{' and '.join(names)}: evaluation",
        read_template("ptexport.toolkit.evaluation", "evaluation.jinja"),
        verdict=verdict(evaluations, contrast),
        data=data,
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        evaluations=evaluations,
        summary=draw_table(["figure", *names], [[name, *(each[name] for each in figures)] for name in figures[0]]),
        contrast=contrast,
        unsure=ABSTENTION_NOTE if any(evaluation.coverage < 1 for evaluation in evaluations) else "",
        views=[(name, *_view(evaluation)) for name, evaluation in zip(names, evaluations, strict=True)],
    )
    write_whole(path, html, force=force)


def _view(evaluation: Evaluation) -> tuple[list["Markup"], list["Markup"]]:
    """Draw the plots and the tables of a bundle."""
    bins = [b for b in evaluation.reliability if b.rows]
    alt = ", ".join(f"{b.accuracy:.0%} correct at {b.confidence:.0%}" for b in bins)
    plots = [draw_figure("Accuracy by predicted probability", partial(_draw_reliability, evaluation), alt=alt)]
    labels = label_rows(evaluation)
    if len(labels) <= _MOST_LABELS:
        alt = "; ".join(f"{row[0]}: {row[2]} of {row[1]} correct" for row in labels)
        draw = partial(_draw_confusion, evaluation)
        plots.insert(0, draw_figure("Rows by label and predicted label", draw, alt=alt, height=4.5))
    tables = [draw_table(LABEL_HEADINGS, labels, title="Labels")]
    mistakes = mistake_rows(evaluation, most_characters=_MOST_CHARACTERS)
    if mistakes:
        shown = MISTAKE_HEADINGS[: len(mistakes[0])]
        tables.append(draw_table(shown, mistakes, title="Most confident mistakes; row numbers start at 1"))
    return plots, tables


def _draw_confusion(evaluation: Evaluation, figure: "Figure") -> None:
    confusion = figure.subplots()
    ticks = range(len(evaluation.labels))
    confusion.imshow(evaluation.confusion, cmap="Blues")
    confusion.set(xlabel="predicted label", ylabel="label", xticks=ticks, yticks=ticks)
    confusion.set_xticklabels(evaluation.labels, rotation=45, ha="right")
    confusion.set_yticklabels(evaluation.labels)
    most = max(map(max, evaluation.confusion))
    for i, counts in enumerate(evaluation.confusion):
        for j, count in enumerate(counts):
            confusion.text(j, i, str(count), ha="center", va="center", color="white" if count > most / 2 else "black")


def _draw_reliability(evaluation: Evaluation, figure: "Figure") -> None:
    axes = figure.subplots()
    bins = [b for b in evaluation.reliability if b.rows]
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    axes.plot([b.confidence for b in bins], [b.accuracy for b in bins], marker="o", color=ACCENT, label="these rows")
    axes.set(xlabel="probability of the predicted label", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=10)
