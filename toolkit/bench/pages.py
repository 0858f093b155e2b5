"""A report -> report.json, report.md and report.html, a single file that loads nothing else."""

import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptexport.toolkit.bench.report import HTML, JSON, MARKDOWN, BenchReport, Machine, Plot, Table
from ptexport.toolkit.html import read_template, render, svg
from ptexport.toolkit.store.folders import new_folder

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FILES = (JSON, MARKDOWN, HTML)
# Distinct in greyscale and with colour blindness (Okabe and Ito 2008); the first is the measured bundle.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_MOST_UNBROKEN = 20  # rows of the longest table that is printed on one page


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
        most_unbroken=_MOST_UNBROKEN,
        breakable=_breakable,
        with_code=_with_code,
        plots=[svg(partial(_draw, plot), height=_height(plot)) for plot in report.plots],
    )


def markdown(report: BenchReport) -> str:
    """Render the report as Markdown, without plots."""
    parts = [f"# {report.title}", _made(report), _list(report.verdict)]
    for table in report.tables:
        parts += [f"## {table.title}", table_markdown(table)] + ([table.note] if table.note else [])
    if report.left_out:
        parts += ["## Not measured", _list([f"{name}: {why}" for name, why in report.left_out.items()])]
    parts += ["## Method", _list(report.how), f"Command: `{report.command}`", _versions(report.machine)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """Render a table as Markdown."""
    lines = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def describe(machine: Machine) -> str:
    """Describe a machine in one line."""
    gpu = "" if machine.gpu is None else f" and {machine.gpu}"
    return f"{machine.cpus} CPUs of {machine.processor}, {machine.memory_mb / 1024:.0f} GiB{gpu}"


def _with_code(sentence: str) -> "Markup":
    """Turn backticks into `<code>` elements."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _breakable(cell: str) -> "Markup":
    """Allow a line break in a figure only before its bracket: 29.5, 0.85 (0.76 to 1.17)."""
    from markupsafe import Markup, escape

    if not cell[:1].isdigit():
        return escape(cell)
    return Markup(" ").join(Markup("<span>{}</span>").format(part) for part in re.split(r" (?=\()", cell))


def _made(report: BenchReport) -> str:
    """State the date, the machine and the bundles."""
    bundles = "".join(f" {name}: manifest {digest[:16]}." for name, digest in report.bundles.items())
    return f"{datetime.fromisoformat(report.made):%d %B %Y, %H:%M} on {describe(report.machine)}.{bundles}"


def _versions(machine: Machine) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{packages}; Python {machine.python}; {machine.system}."


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _height(plot: Plot) -> float:
    return 1.2 + 0.22 * len(plot.series[0].labels) if plot.kind == "bars" else 4


def _draw(plot: Plot, figure: "Figure") -> None:
    axes = figure.subplots()
    if plot.kind == "bars":
        _draw_bars(axes, plot)
    else:
        _draw_points(axes, plot)
    axes.set_title(plot.title, fontsize=10, loc="left")
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6, axis="x" if plot.kind == "bars" else "both")
    if len(plot.series) > 1:
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)


def _draw_points(axes: "Axes", plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        line = "" if series.labels else "-"
        axes.plot(series.x, series.y, linestyle=line, markersize=5, label=series.name, color=colour, marker=marker)
        if series.low:
            axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1, alpha=0.6)
        for x, y, word in zip(series.x, series.y, series.labels, strict=False):
            axes.annotate(word, (x, y), (4, 4), textcoords="offset points", fontsize=8)
    if plot.log_x:
        axes.set_xscale("log")
        _plain_powers(axes.xaxis)
        ticks = plot.series[0].x
        if all(series.x == ticks for series in plot.series):
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
    axes.margins(x=0.12, y=0.12)
    if plot.log_y:
        axes.set_yscale("log")
        _plain_powers(axes.yaxis)
    elif not any(series.labels for series in plot.series):
        axes.set_ylim(bottom=0)


def _plain_powers(axis: "Axis") -> None:
    """Label ticks 100, not 10^2: matplotlib's mathtext would appear as its source in an SVG with text."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def _draw_bars(axes: "Axes", plot: Plot) -> None:
    names = plot.series[0].labels
    left = [0.0] * len(names)
    for number, series in enumerate(plot.series):
        axes.barh(names, series.x, left=left, color=_COLOURS[number % len(_COLOURS)], label=series.name, height=0.7)
        left = [start + x for start, x in zip(left, series.x, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
