"""Evaluations -> one HTML page with plots that needs nothing else, not even a network."""

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.toolkit.evaluation.figures import ABSTENTION_NOTE, Contrast, Evaluation, headings, summary
from ptexport.toolkit.html import render, svg
from ptexport.toolkit.store.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BODY = """\
<h1>{{ evaluations[0].n_rows }} rows of {{ data }}</h1>
<p>{{ date }}. {% for e in evaluations %}{{ e.bundle }}: manifest {{ e.digest }}. {% endfor %}</p>
<div class="wide"><table>
<tr><th></th>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for name in figures[0] %}
<tr><td>{{ name }}</td>{% for summary in figures %}<td>{{ summary[name] }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% if contrast %}<p>The two agree on {{ "%.1f %%" % (100 * contrast.agreement) }} of the rows. Where they do not, the
first is right on {{ contrast.only_first_right }}, the second on {{ contrast.only_second_right }}. Rows with different
answers: {{ contrast.differing[:50] | join(", ") or "none" }}{{ " …" if contrast.differing | length > 50 }}.</p>
{% endif %}
{% if unsure %}<p>{{ unsure }}</p>{% endif %}
{% for e in evaluations %}
<h2>{{ headings[loop.index0] }}</h2>
<div class="plots">{{ plots[loop.index0][0] }}{{ plots[loop.index0][1] }}</div>
<table><caption>F1</caption>
{% for label in e.labels %}<tr><td>{{ label }}</td><td>{{ "%.3f" % e.f1[loop.index0] }}</td></tr>
{% endfor %}</table>
{% if e.worst %}<table><caption>surest mistakes, by number of the row from 1</caption>
<tr><th>row</th><th>label</th><th>answer</th><th>probability</th></tr>
{% for m in e.worst %}
<tr><td>{{ m.row }}</td><td>{{ m.label }}</td><td>{{ m.answer }}</td><td>{{ "%.3f" % m.probability }}</td></tr>
{% endfor %}</table>{% endif %}
{% endfor %}
"""


def write_page(path: Path, evaluations: list[Evaluation], contrast: Contrast | None, *, data: str, force: bool) -> None:
    """Write the page.

    Args:
        path: the file.
        evaluations: of one bundle, or two.
        contrast: of the two.
        data: where the rows are from.
        force: replace the file if it is there.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    both = [
        (svg(partial(_draw_confusion, evaluation), height=4.5), svg(partial(_draw_reliability, evaluation), height=4.5))
        for evaluation in evaluations
    ]
    figures = [summary(evaluation) for evaluation in evaluations]
    html = render(
        f"{' and '.join(headings(evaluations))}: evaluation",
        _BODY,
        data=data,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        evaluations=evaluations,
        headings=headings(evaluations),
        figures=figures,
        contrast=contrast,
        unsure=ABSTENTION_NOTE if any(evaluation.coverage < 1 for evaluation in evaluations) else "",
        plots=both,
    )
    write_whole(path, html, force=force)


def _draw_confusion(evaluation: Evaluation, figure: "Figure") -> None:
    confusion = figure.subplots()
    ticks = range(len(evaluation.labels))
    confusion.imshow(evaluation.confusion, cmap="Blues")
    confusion.set(xlabel="answer", ylabel="label", title="confusion", xticks=ticks, yticks=ticks)
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
    reliability.set(
        xlabel="probability of the answer", ylabel="share right", title="reliability", xlim=(0, 1), ylim=(0, 1)
    )
