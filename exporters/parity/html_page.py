"""A parity report -> one HTML page with plots, a single file that loads nothing else."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptexport.exporters.parity.report import Difference, ParityReport, TaskReport
from ptexport.toolkit.html import ACCENT, MUTED, read_template, render, svg
from ptexport.toolkit.store.files import write_whole

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_WORST = 10
"""Rows that a table lists; parity.json has more."""


def write_page(path: Path, report: ParityReport, *, force: bool) -> None:
    """Write the page.

    Args:
        path: file to write.
        report: content of `parity.json`.
        force: replace the file if it exists.

    Raises:
        OutputError: the file exists and `force` is false, or the file cannot be written.
        ModuleNotFoundError: matplotlib or jinja2, of the extra `bench`, is not installed.
    """
    write_whole(path, page(report), force=force)


def page(report: ParityReport) -> bytes:
    """Render the page, with one section per task."""
    return render(
        f"{report.bundle}: parity",
        read_template("ptexport.exporters.parity", "parity.jinja"),
        report=report,
        views=[_view(task) for task in report.tasks],
        n_worst=N_WORST,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What the page computes for one task.

    Attributes:
        ways: the comparisons of all rows, by name.
        largest: largest difference of a logit in `ways`.
        flips: the number of labels that differ, in words.
        largest_of_lengths: largest difference of a logit of a generated text.
        closest: the row that is nearest to another label, in words.
        plots: rows and lengths.
    """

    ways: list[tuple[str, Difference]]
    largest: float
    flips: str
    largest_of_lengths: float
    closest: str
    plots: tuple["Markup", "Markup"]


def _view(task: TaskReport) -> _View:
    ways = [
        ("each row alone", task.alone),
        ("mixed batches, padded right", task.padded_right),
        ("mixed batches, padded left", task.padded_left),
    ]
    if task.fan_out is not None:
        ways.append(("all tasks in one row", task.fan_out))
    flips = {flip.row for _, way in ways for flip in way.flips}
    return _View(
        ways=ways,
        largest=float(np.max([way.max_abs_diff for _, way in ways])),
        flips=f"{len(flips)} label{'s differ' if len(flips) > 1 else ' differs'}" if flips else "no label differs",
        largest_of_lengths=float(np.max([point.max_abs_diff for point in task.lengths])),
        closest=_closest(task),
        plots=(svg(partial(_draw_rows, task)), svg(partial(_draw_lengths, task))),
    )


def _closest(task: TaskReport) -> str:
    """Describe the row that is nearest to another label."""
    row = min(task.worst, key=lambda row: row.margin / 2 / max(row.max_abs_diff, 1e-12))
    times = row.margin / 2 / max(row.max_abs_diff, 1e-12)
    said = f"Row {row.row} is nearest to that, with margin {row.margin:.2g} and Δ {row.max_abs_diff:.1e}"
    if times <= 1:
        return f"{said}."
    return f"{said}: its Δ would have to be {times:,.{0 if times >= 10 else 1}f} times as large."


def _draw_rows(task: TaskReport, figure: "Figure") -> None:
    axes = figure.subplots()
    margins = np.maximum([row.margin for row in task.worst], 1e-6)
    differences = np.maximum([row.max_abs_diff for row in task.worst], 1e-9)
    axes.scatter(margins, differences, s=14, color=ACCENT, alpha=0.5, linewidths=0)
    low, high = margins.min() / 2, margins.max() * 2
    axes.plot([low, high], [low / 2, high / 2], color="#b3402a", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="margin of the model", ylabel="largest Δ of the row")
    axes.set_title("rows; above the line a label can differ", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter(_power)
    _plain(axes)


def _draw_lengths(task: TaskReport, figure: "Figure") -> None:
    axes = figure.subplots()
    tokens = [point.tokens for point in task.lengths]
    axes.plot(tokens, [max(point.max_abs_diff, 1e-9) for point in task.lengths], marker="o", color=ACCENT)
    axes.axhline(task.tolerance, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("tolerance", (tokens[0], task.tolerance), (0, -12), textcoords="offset points", color=MUTED)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="largest Δ of the text")
    axes.set_xticks(shown := _apart(tokens), [str(n) for n in shown], minor=False)
    axes.set_title("lengths, the longest truncated", fontsize=10, loc="left")
    _plain(axes)


def _apart(tokens: list[int]) -> list[int]:
    """Leave out ticks so that their numbers do not touch."""
    shown: list[int] = []
    for n in sorted(set(tokens), reverse=True):
        if not shown or n * 1.4 < shown[-1]:
            shown.append(n)
    return shown


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.yaxis.set_major_formatter(_power)
    axes.minorticks_off()


def _power(value: float, _: float) -> str:
    return f"{value:.0e}"
