"""A report -> report.json, report.md and report.html, a single file that loads nothing else."""

import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptexport.toolkit.bench.report import HTML, JSON, MARKDOWN, BenchReport, Machine, Plot, Table
from ptexport.toolkit.html import COLOURS, MUTED, OTHERS, draw_figure, draw_table, read_template, render
from ptexport.toolkit.store.folders import new_folder
from ptexport.toolkit.tables import figure_columns

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FILES = (JSON, MARKDOWN, HTML)
_MARKERS = "osD^vP*X"
_LEGEND_COLUMNS = 4
_MOST_CHARACTERS = 57  # of a label above a bar


def write_report(path: Path, report: BenchReport, *, force: bool) -> None:
    """Write a folder with the report as JSON, Markdown and HTML.

    Args:
        path: folder to create.
        report: report to write.
        force: replace an existing report.

    Raises:
        OutputError: the folder exists and `force` is false, or a file cannot be written.
        ModuleNotFoundError: matplotlib or jinja2, of the extra `bench`, is not installed.
    """
    with new_folder(path, force=force, files=FILES) as folder:
        encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
        (folder / JSON).write_bytes(encoded + b"\n")
        (folder / MARKDOWN).write_text(markdown(report), encoding="utf-8")
        (folder / HTML).write_bytes(html(report))


def html(report: BenchReport) -> bytes:
    """Render the report as an HTML page."""
    return render(
        report.title,
        read_template("ptexport.toolkit.bench", "report.jinja"),
        report=report,
        made=_made(report),
        versions=_versions(report.machine),
        with_code=_with_code,
        tables=[draw_table(table.columns, table.rows, highlight=table.highlight) for table in report.tables],
        plots=[
            draw_figure(plot.title, partial(_draw, plot), alt=_in_words(plot), height=_height(plot))
            for plot in report.plots
        ],
    )


def markdown(report: BenchReport) -> str:
    """Render the report as Markdown, without plots."""
    first, *others = report.verdict
    parts = [f"# {first}", *([_list(others)] if others else []), f"{report.title}. {_made(report)}"]
    for table in report.tables:
        parts += [f"## {table.title}", table_markdown(table)] + ([table.note] if table.note else [])
    if report.left_out:
        parts += ["## Not measured", _list([f"{name}: {why}" for name, why in report.left_out.items()])]
    parts += ["## Method", _list(report.how), f"Command: `{report.command}`", _versions(report.machine)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """Render a table as Markdown."""
    right = figure_columns(table.rows) or [False] * len(table.columns)
    lines = [table.columns, ["---:" if figures else "---" for figures in right], *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def describe(machine: Machine) -> str:
    """Describe a machine in one line."""
    gpu = "" if machine.gpu is None else f" and {machine.gpu}"
    return f"{machine.cpus} CPUs of {machine.processor}, {machine.memory_mb / 1024:.0f} GiB{gpu}"


def _with_code(sentence: str) -> "Markup":
    """Turn backticks into `<code>` elements, and keep "8 x 28" and "95 %" on one line."""
    from markupsafe import Markup, escape

    whole = re.sub(r"(?<=\d) (?=x \d|%)|(?<=\d x) (?=\d)", "\N{NO-BREAK SPACE}", str(escape(sentence)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", whole))


def _made(report: BenchReport) -> str:
    """State the date, the machine and the bundles."""
    bundles = "".join(f" {name}: manifest {digest[:16]}." for name, digest in report.bundles.items())
    return f"{datetime.fromisoformat(report.made):%d %B %Y, %H:%M} on {describe(report.machine)}.{bundles}"


def _versions(machine: Machine) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{packages}; Python {machine.python}; {machine.system}."


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _in_words(plot: Plot) -> str:
    """Describe a plot for those who cannot see it."""
    axes = plot.x_label if plot.kind != "lines" else f"{plot.y_label} by {plot.x_label}"
    if plot.kind == "bars":
        return f"{plot.title}, {axes}: {'; '.join(plot.series[0].labels)}"
    points = [
        f"{series.name}: {', '.join(f'{value:.4g}' for value in (series.y or series.x))}" for series in plot.series
    ]
    return f"{plot.title}, {axes}: {'; '.join(points)}"


def _height(plot: Plot) -> float:
    per_row = {"bars": 0.56, "stacked": 0.28, "lines": 0.0}[plot.kind]
    return (3.8 if plot.kind == "lines" else 0.6 + per_row * len(plot.series[0].labels)) + _legend_height(plot)


def _legend_height(plot: Plot) -> float:
    return 0.25 * -(-len(plot.series) // _LEGEND_COLUMNS) if len(plot.series) > 1 else 0.0


def _draw(plot: Plot, figure: "Figure") -> None:
    axes = figure.subplots()
    {"bars": _draw_bars, "stacked": _draw_stacked, "lines": _draw_lines}[plot.kind](axes, plot)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6, axis="both" if plot.kind == "lines" else "x")
    axes.set_axisbelow(True)
    if len(plot.series) > 1:
        figure.legend(loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=10)


def _draw_lines(axes: "Axes", plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(series.x, series.y, markersize=6, linewidth=2, label=series.name, color=colour, marker=marker)
        if series.low:
            axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.2, alpha=0.6)
    if plot.log_x:
        axes.set_xscale("log")
        ticks = plot.series[0].x
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    if plot.log_y:
        axes.set_yscale("log")
        _plain_powers(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)


def _plain_powers(axis: "Axis") -> None:
    """Label ticks 100, not 10^2: matplotlib's mathtext would appear as its source in an SVG with text."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def _draw_bars(axes: "Axes", plot: Plot) -> None:
    """Draw one bar per label, with the label above it, where it has the width of a phone."""
    (series,) = plot.series
    for row, (label, length) in enumerate(zip(series.labels, series.x, strict=True)):
        first = row == plot.highlight
        axes.barh(row, length, height=0.4, color=COLOURS[0] if first or plot.highlight is None else OTHERS)
        place = axes.get_yaxis_transform()  # x from 0 to 1
        weight = "bold" if first else "normal"
        text = axes.text(0, row - 0.27, _shortened(label), transform=place, va="bottom", fontsize=11, fontweight=weight)
        text.set_in_layout(False)  # the bars keep the whole width
    if series.low:
        axes.hlines(range(len(series.low)), series.low, series.high, color="#222222", linewidth=1.5)
    axes.set_ylim(len(series.labels) - 0.65, -0.75)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.spines["left"].set_color(MUTED)


def _shortened(label: str) -> str:
    """Cut the name in a label that is wider than the plot, not its figures."""
    name, colon, figures = label.partition(": ")
    room = max(8, _MOST_CHARACTERS - len(colon + figures))
    return label if len(name) <= room else f"{name[: room - 1]}…{colon}{figures}"


def _draw_stacked(axes: "Axes", plot: Plot) -> None:
    names = plot.series[0].labels
    left = [0.0] * len(names)
    for number, series in enumerate(plot.series):
        axes.barh(names, series.x, left=left, color=COLOURS[number % len(COLOURS)], label=series.name, height=0.7)
        left = [start + x for start, x in zip(left, series.x, strict=True)]
    for row, total in enumerate(left):
        axes.annotate(f"{total:.2f}", (total, row), (3, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.12)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", labelsize=10)
