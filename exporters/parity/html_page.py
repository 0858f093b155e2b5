"""A parity report -> one HTML page with plots, a single file that loads nothing else."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptexport.exporters.parity.report import Difference, ParityReport, TaskReport
from ptexport.toolkit.html import ACCENT, COLOURS, MUTED, draw_figure, draw_table, read_template, render
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
        verdict=_verdict(report),
        views=[_view(task) for task in report.tasks],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What the page shows of one task.

    Attributes:
        heading: name, largest difference and labels that differ.
        plots: rows and lengths.
        closest: the row that is nearest to another label, in words.
        tables: the comparisons, the labels that differ, the rows with the largest differences, the lengths.
    """

    heading: str
    plots: list["Markup"]
    closest: str
    tables: list["Markup"]


def _verdict(report: ParityReport) -> str:
    """State in one sentence how far the graph is from the model."""
    largest = float(np.max([way.max_abs_diff for task in report.tasks for way in _ways(task).values()]))
    flips = sum(len(_flips(task)) for task in report.tasks)
    rows = sum(task.rows for task in report.tasks)
    labels = f"{flips} of {rows} rows have another label" if flips else f"all {rows} rows have the same label"
    return f"{report.bundle} differs from {report.backbone} by at most {largest:.1e} in a logit, and {labels}."


def _ways(task: TaskReport) -> dict[str, Difference]:
    """The comparisons of all rows, by name."""
    ways = {
        "each row alone": task.alone,
        "mixed batches, padded right": task.padded_right,
        "mixed batches, padded left": task.padded_left,
    }
    return ways if task.fan_out is None else {**ways, "all tasks in one row": task.fan_out}


def _flips(task: TaskReport) -> set[int]:
    return {flip.row for way in _ways(task).values() for flip in way.flips}


def _view(task: TaskReport) -> _View:
    largest = float(np.max([way.max_abs_diff for way in _ways(task).values()]))
    flips = len(_flips(task))
    words = "no label differs" if not flips else f"{flips} label differs" if flips == 1 else f"{flips} labels differ"
    lengths = "; ".join(f"{point.tokens} tokens {point.max_abs_diff:.1e}" for point in task.lengths)
    return _View(
        heading=f"{task.name}: largest Δ {largest:.1e}, {words}",
        plots=[
            draw_figure("Rows: above the line a label can differ", partial(_draw_rows, task), alt=_closest(task)),
            draw_figure("Lengths of texts, the longest truncated", partial(_draw_lengths, task), alt=lengths),
        ],
        closest=_closest(task),
        tables=_tables(task),
    )


def _tables(task: TaskReport) -> list["Markup"]:
    tables = [draw_table(["batches", "largest Δ", "mean Δ", "labels that differ"], _comparisons(task))]
    for name, way in _ways(task).items():
        if way.flips:
            flips = [[str(f.row), f.expected, f.got, f"{f.margin:.2g}"] for f in way.flips[:N_WORST]]
            title = f"Labels that differ, {name}"
            tables.append(draw_table(["row", "model", "graph", "margin"], flips, title=title))
    worst = [
        [str(row.row), str(row.tokens), f"{row.margin:.2g}", f"{row.max_abs_diff:.1e}"] for row in task.worst[:N_WORST]
    ]
    tables.append(draw_table(["row", "tokens", "margin", "largest Δ"], worst, title="Rows with the largest Δ"))
    lengths = [
        [str(point.tokens), "yes" if point.truncated else "", f"{point.margin:.2g}", f"{point.max_abs_diff:.1e}"]
        for point in task.lengths
    ]
    return [*tables, draw_table(["tokens", "truncated", "margin", "largest Δ"], lengths, title="Lengths of texts")]


def _comparisons(task: TaskReport) -> list[list[str]]:
    rows = [
        [name, f"{way.max_abs_diff:.1e}", f"{way.mean_abs_diff:.1e}", str(len(way.flips))]
        for name, way in _ways(task).items()
    ]
    longest = float(np.max([point.max_abs_diff for point in task.lengths]))
    flips = sum(point.flips for point in task.lengths)
    tokens = f"{task.lengths[0].tokens} to {task.lengths[-1].tokens} tokens"
    near = task.neighbours
    name = f"graph with itself: among {near.neighbours} others"
    return [
        *rows,
        [tokens, f"{longest:.1e}", "", str(flips)],
        [name, f"{near.max_abs_diff:.1e}", f"{near.mean_abs_diff:.1e}", str(len(near.flips))],
    ]


def _closest(task: TaskReport) -> str:
    """Describe the row that is nearest to another label."""
    row = min(task.worst, key=lambda row: row.margin / 2 / max(row.max_abs_diff, 1e-12))
    times = row.margin / 2 / max(row.max_abs_diff, 1e-12)
    said = f"Row {row.row} is nearest to that, with margin {row.margin:.2g} and Δ {row.max_abs_diff:.1e}"
    if times <= 1:
        return f"{said}."
    return f"{said}: its Δ would have to be {times:,.{0 if times >= 10 else 1}f} times larger."


def _draw_rows(task: TaskReport, figure: "Figure") -> None:
    axes = figure.subplots()
    margins = np.maximum([row.margin for row in task.worst], 1e-6)
    differences = np.maximum([row.max_abs_diff for row in task.worst], 1e-9)
    axes.scatter(margins, differences, s=14, color=ACCENT, alpha=0.5, linewidths=0)
    low, high = margins.min() / 2, margins.max() * 2
    axes.plot([low, high], [low / 2, high / 2], color=COLOURS[1], linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="margin of the model (logits)",
        ylabel="largest Δ of the row (logits)",
    )
    axes.xaxis.set_major_formatter(_power)
    _plain(axes)


def _draw_lengths(task: TaskReport, figure: "Figure") -> None:
    axes = figure.subplots()
    tokens = [point.tokens for point in task.lengths]
    axes.plot(tokens, [max(point.max_abs_diff, 1e-9) for point in task.lengths], marker="o", color=ACCENT)
    axes.axhline(task.tolerance, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("tolerance", (tokens[0], task.tolerance), (0, -12), textcoords="offset points", color=MUTED)
    axes.set(xscale="log", yscale="log", xlabel="length (tokens)", ylabel="largest Δ of the text (logits)")
    axes.set_xticks(shown := _apart(tokens), [str(n) for n in shown], minor=False)
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
