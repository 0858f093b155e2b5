"""A parity report -> its page, for people."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ptexport.exporters.parity.report import ParityReport, VariantReport
from ptexport.toolkit.html import ACCENT, MUTED, render, svg

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_WORST = 10
"""Rows that are listed; parity.json has more."""

_BODY = """\
<h1>{{ report.bundle }}: does the graph answer as {{ report.backbone }} does?</h1>
<p>{{ "%d rows" % report.rows }} were asked of untouched Transformers, one at a time and unpadded, in fp32, and of the
graph. Δ is the difference of a logit; the largest logit here is {{ "%.1f" % report.max_abs_logit }}. Rows are named by
number, from 0; the last {{ report.always }} are ones that every export adds.</p>
{% for v in report.variants %}
<h2>{{ v.precision }}: largest Δ {{ "%.1e" % verdicts[loop.index0][0] }}, {{ verdicts[loop.index0][1] }}</h2>
<div class="wide"><table>
<tr><th></th><th>largest Δ</th><th>mean Δ</th><th>labels that differ</th></tr>
{% for name, d in [("each row alone", v.alone), ("mixed batches, padded right", v.padded_right),
    ("mixed batches, padded left", v.padded_left)] %}
<tr><td>{{ name }}</td><td>{{ "%.1e" % d.max_abs_diff }}</td><td>{{ "%.1e" % d.mean_abs_diff }}</td>
<td>{{ d.flips | length }}</td></tr>
{% endfor %}
<tr><td>{{ v.lengths[0].tokens }} to {{ v.lengths[-1].tokens }} tokens</td><td>{{ "%.1e" % furthest[loop.index0] }}</td>
<td></td><td>{{ v.lengths | selectattr("flips") | list | length }}</td></tr>
<tr><td>graph with itself: among {{ v.neighbours.neighbours }} others</td>
<td>{{ "%.1e" % v.neighbours.max_abs_diff }}</td><td>{{ "%.1e" % v.neighbours.mean_abs_diff }}</td>
<td>{{ v.neighbours.flips | length }}</td></tr>
</table></div>
{% if plots %}<div class="plots">{{ plots[loop.index0][0] }}{{ plots[loop.index0][1] }}</div>
{% else %}<p class="note">Plots need <code>pip install 'ptexport[bench]'</code> when exporting.</p>{% endif %}
<p>A label can differ only where Δ is at least half the margin, the model's difference between its two largest logits.
{{ closest[loop.index0] }}</p>
{% for name, d in [("alone", v.alone), ("padded right", v.padded_right), ("padded left", v.padded_left)] if d.flips %}
<div class="wide"><table><caption>labels that differ, {{ name }}</caption>
<tr><th>row</th><th>model</th><th>graph</th><th>margin</th></tr>
{% for f in d.flips[:n_worst] %}
<tr><td>{{ f.row }}</td><td>{{ f.expected }}</td><td>{{ f.got }}</td><td>{{ "%.2g" % f.margin }}</td></tr>
{% endfor %}</table></div>
{% endfor %}
<div class="plots">
<table><caption>worst rows</caption>
<tr><th>row</th><th>tokens</th><th>margin</th><th>largest Δ</th></tr>
{% for r in v.rows[:n_worst] %}
<tr><td>{{ r.row }}</td><td>{{ r.tokens }}</td><td>{{ "%.2g" % r.margin }}</td>
<td>{{ "%.1e" % r.max_abs_diff }}</td></tr>
{% endfor %}</table>
<table><caption>lengths</caption>
<tr><th>tokens</th><th></th><th>margin</th><th>largest Δ</th></tr>
{% for p in v.lengths %}
<tr><td>{{ p.tokens }}</td><td>{{ "truncated" if p.truncated }}</td><td>{{ "%.2g" % p.margin }}</td>
<td>{{ "%.1e" % p.max_abs_diff }}</td></tr>
{% endfor %}</table>
</div>
{% endfor %}
<p class="note">Alone, mixed and lengths: the graph against the model. Mixed batches hold 16 rows of any lengths.
Lengths are made-up texts; the shortest and the longest were also padded beside each other, on either side. Among
others: rows in one batch against the same rows alone, so that an answer that depends on its neighbours shows. In fp32
Δ may be at most {{ "%.0e" % report.tolerance }}. The same for machines, and more rows: parity.json. Made with
{% for name, version in report.versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}.</p>
"""


def page(report: ParityReport) -> bytes:
    """Make the page, with plots where matplotlib is installed; without, it says how to have them."""
    return render(
        f"{report.bundle}: parity",
        _BODY,
        report=report,
        verdicts=[_verdict(variant) for variant in report.variants],
        furthest=[float(np.max([p.max_abs_diff for p in variant.lengths])) for variant in report.variants],
        closest=[_closest(variant) for variant in report.variants],
        plots=_plots(report),
        n_worst=N_WORST,
    )


def _verdict(variant: VariantReport) -> tuple[float, str]:
    ways = (variant.alone, variant.padded_right, variant.padded_left)
    flips = {flip.row for way in ways for flip in way.flips}
    said = f"{len(flips)} label{'s differ' if len(flips) > 1 else ' differs'}" if flips else "no label differs"
    return float(np.max([way.max_abs_diff for way in ways])), said


def _closest(variant: VariantReport) -> str:
    """Say which row came nearest to another label."""
    row = min(variant.rows, key=lambda row: row.margin / 2 / max(row.max_abs_diff, 1e-12))
    times = row.margin / 2 / max(row.max_abs_diff, 1e-12)
    said = f"Nearest to that came row {row.row}, with margin {row.margin:.2g} and Δ {row.max_abs_diff:.1e}"
    return f"{said}: it would take {times:,.{0 if times >= 10 else 1}f} times as much." if times > 1 else f"{said}."


def _plots(report: ParityReport) -> list[tuple["Markup", "Markup"]]:
    try:
        import matplotlib as mpl  # noqa: F401
    except ModuleNotFoundError:
        return []
    return [
        (svg(partial(_draw_rows, variant)), svg(partial(_draw_lengths, variant, report.tolerance)))
        for variant in report.variants
    ]


def _draw_rows(variant: VariantReport, figure: "Figure") -> None:
    axes = figure.subplots()
    margins = np.maximum([row.margin for row in variant.rows], 1e-6)
    differences = np.maximum([row.max_abs_diff for row in variant.rows], 1e-9)
    axes.scatter(margins, differences, s=14, color=ACCENT, alpha=0.5, linewidths=0)
    low, high = margins.min() / 2, margins.max() * 2
    axes.plot([low, high], [low / 2, high / 2], color="#b3402a", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="margin of the model", ylabel="largest Δ of the row")
    axes.set_title("rows; above the line a label could differ", fontsize=10, loc="left")
    axes.xaxis.set_major_formatter(_power)
    _plain(axes)


def _draw_lengths(variant: VariantReport, tolerance: float, figure: "Figure") -> None:
    axes = figure.subplots()
    tokens = [point.tokens for point in variant.lengths]
    axes.plot(tokens, [max(point.max_abs_diff, 1e-9) for point in variant.lengths], marker="o", color=ACCENT)
    axes.axhline(tolerance, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("most that fp32 may show", (tokens[0], tolerance), (0, -12), textcoords="offset points", color=MUTED)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the row", ylabel="largest Δ of the text")
    axes.set_xticks(shown := _apart(tokens), [str(n) for n in shown], minor=False)
    axes.set_title("lengths, the longest truncated", fontsize=10, loc="left")
    _plain(axes)


def _apart(tokens: list[int]) -> list[int]:
    """Leave out ticks whose numbers would touch."""
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
