"""A report -> the files that say it: JSON for machines, Markdown, and one HTML page that needs nothing else."""

import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ptexport.toolkit.bench.report import HTML, JSON, MARKDOWN, Machine, Plot, Report, Table
from ptexport.toolkit.html import render, svg
from ptexport.toolkit.store.folders import new_folder

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FILES = (JSON, MARKDOWN, HTML)
# Told apart in grey and by the colour-blind too (Okabe and Ito 2008); what is ours comes first.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_MARKERS = "osD^vP*X"
_WHOLE = 20  # rows of a table that is not split over pages

_BODY = """\
<h1>{{ report.title }}</h1>
<p class="note">{{ made }}</p>
<ul>{% for sentence in report.verdict %}<li>{{ said(sentence) }}</li>{% endfor %}</ul>
{% if plots %}<div class="plots">{% for plot in plots %}{{ plot }}{% endfor %}</div>{% endif %}
{% for table in report.tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table class="breaks{{ " long" if table.rows | length > whole }}">
<thead><tr>{% for heading in table.columns %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ joined(cell) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if table.note %}<p class="note">{{ said(table.note) }}</p>{% endif %}
{% endfor %}
{% if report.left_out %}<h2>Not measured</h2>
<ul>{% for name, why in report.left_out.items() %}<li>{{ name }}: {{ said(why) }}</li>{% endfor %}</ul>{% endif %}
<h2>How</h2>
<ul>{% for sentence in report.how %}<li>{{ said(sentence) }}</li>{% endfor %}</ul>
<p>For the same: <code>{{ report.command }}</code></p>
<p class="note">{{ versions }} Every figure with its
interval: report.json.</p>
"""


def write_report(path: Path, report: Report, *, force: bool) -> None:
    """Write a folder with the report in three forms.

    Args:
        path: the folder to make.
        report: what to say.
        force: replace a report that is there.

    Raises:
        OutputError: the folder exists and may not be replaced, or the disk refuses.
        ModuleNotFoundError: matplotlib or jinja2, of the extra `bench`, is not installed.
    """
    with new_folder(path, force=force, files=FILES) as folder:
        encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
        (folder / JSON).write_bytes(encoded + b"\n")
        (folder / MARKDOWN).write_text(markdown(report), encoding="utf-8")
        (folder / HTML).write_bytes(html(report))


def html(report: Report) -> bytes:
    """Make the page."""
    return render(
        report.title,
        _BODY,
        report=report,
        made=_made(report),
        versions=_versions(report.machine),
        whole=_WHOLE,
        joined=_joined,
        said=_with_code,
        plots=[svg(partial(_draw, plot), height=_height(plot)) for plot in report.plots],
    )


def markdown(report: Report) -> str:
    """Say the same in Markdown, plots left out."""
    parts = [f"# {report.title}", _made(report), _list(report.verdict)]
    for table in report.tables:
        parts += [f"## {table.title}", table_markdown(table)] + ([table.note] if table.note else [])
    if report.left_out:
        parts += ["## Not measured", _list([f"{name}: {why}" for name, why in report.left_out.items()])]
    parts += ["## How", _list(report.how), f"For the same: `{report.command}`", _versions(report.machine)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """Write a table in Markdown."""
    lines = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def describe(machine: Machine) -> str:
    """Name a machine in a line."""
    gpu = "" if machine.gpu is None else f" and {machine.gpu}"
    return f"{machine.cpus} CPUs of {machine.processor}, {machine.memory_mb / 1024:.0f} GiB{gpu}"


def _with_code(sentence: str) -> "Markup":
    """Set what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _joined(cell: str) -> "Markup":
    """Have a figure break before its brackets and nowhere else: 29.5, 0.85 (0.76 to 1.17)."""
    from markupsafe import Markup, escape

    if not cell[:1].isdigit():
        return escape(cell)
    return Markup(" ").join(Markup("<span>{}</span>").format(part) for part in re.split(r" (?=\()", cell))


def _made(report: Report) -> str:
    """Say when, on what, and of which bundles."""
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
    """Write 100, not the 10^2 in mathematics that a page whose text stays text shows as its source."""
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
