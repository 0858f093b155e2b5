"""Evaluations -> one HTML page with plots, a single file that loads nothing else."""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.toolkit.evaluation.metrics import ABSTENTION_NOTE, Contrast, Evaluation, headings, summary
from ptexport.toolkit.html import read_template, render, svg
from ptexport.toolkit.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    plots = [
        (svg(partial(_draw_confusion, evaluation), height=4.5), svg(partial(_draw_reliability, evaluation), height=4.5))
        for evaluation in evaluations
    ]
    figures = [summary(evaluation) for evaluation in evaluations]
    html = render(
        f"{' and '.join(headings(evaluations))}: evaluation",
        read_template("ptexport.toolkit.evaluation", "evaluation.jinja"),
        data=data,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        evaluations=evaluations,
        headings=headings(evaluations),
        figures=figures,
        contrast=contrast,
        unsure=ABSTENTION_NOTE if any(evaluation.coverage < 1 for evaluation in evaluations) else "",
        plots=plots,
    )
    write_whole(path, html, force=force)


def _draw_confusion(evaluation: Evaluation, figure: "Figure") -> None:
    confusion = figure.subplots()
    ticks = range(len(evaluation.labels))
    confusion.imshow(evaluation.confusion, cmap="Blues")
    confusion.set(xlabel="prediction", ylabel="label", title="confusion", xticks=ticks, yticks=ticks)
    confusion.set_xticklabels(evaluation.labels, rotation=45, ha="right")
    confusion.set_yticklabels(evaluation.labels)
    most = max(map(max, evaluation.confusion))
    for i, counts in enumerate(evaluation.confusion):
        for j, count in enumerate(counts):
            confusion.text(j, i, str(count), ha="center", va="center", color="white" if count > most / 2 else "black")


def _draw_reliability(evaluation: Evaluation, figure: "Figure") -> None:
    reliability = figure.subplots()
    bins = [b for b in evaluation.reliability if b.rows]
    reliability.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    reliability.plot([b.confidence for b in bins], [b.accuracy for b in bins], marker="o")
    reliability.set(xlabel="predicted probability", ylabel="accuracy", title="reliability", xlim=(0, 1), ylim=(0, 1))
