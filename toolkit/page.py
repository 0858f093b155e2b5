"""Evaluations -> one HTML page with plots that needs nothing else, not even a network."""

import io
from datetime import datetime
from pathlib import Path

from ptexport.runtime.streaming import write_whole
from ptexport.toolkit.evaluate import UNSURE, Contrast, Evaluation, headings, summary

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ headings | join(" and ") }}: evaluation</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
</style>
<h1>{{ evaluations[0].n_rows }} rows of {{ data }}</h1>
<p>{{ date }}. {% for e in evaluations %}{{ e.bundle }}: manifest {{ e.digest }}. {% endfor %}</p>
<table>
<tr><th></th>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for name in figures[0] %}
<tr><td>{{ name }}</td>{% for summary in figures %}<td>{{ summary[name] }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% if contrast %}<p>The two agree on {{ "%.1f %%" % (100 * contrast.agreement) }} of the rows. Where they do not, the
first is right on {{ contrast.only_first_right }}, the second on {{ contrast.only_second_right }}. Rows with different
answers: {{ contrast.differing[:50] | join(", ") or "none" }}{{ " …" if contrast.differing | length > 50 }}.</p>
{% endif %}
{% if unsure %}<p>{{ unsure }}</p>{% endif %}
{% for e in evaluations %}
<h2>{{ headings[loop.index0] }}</h2>
{{ plots[loop.index0] }}
<table><caption>F1</caption>
{% for label in e.labels %}<tr><td>{{ label }}</td><td>{{ "%.3f" % e.f1[loop.index0] }}</td></tr>
{% endfor %}</table>
{% if e.worst %}<table><caption>surest mistakes, by number of the row from 1</caption>
<tr><th>row</th><th>label</th><th>answer</th><th>probability</th></tr>
{% for m in e.worst %}
<tr><td>{{ m.row }}</td><td>{{ m.label }}</td><td>{{ m.answer }}</td><td>{{ "%.3f" % m.probability }}</td></tr>
{% endfor %}</table>{% endif %}
{% endfor %}
</html>
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
    from jinja2 import Environment
    from markupsafe import Markup

    plots = [Markup(_plots(evaluation)) for evaluation in evaluations]  # our own SVG, its text escaped
    template = Environment(autoescape=True).from_string(_PAGE)
    figures = [summary(evaluation) for evaluation in evaluations]
    html = template.render(
        data=data,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        evaluations=evaluations,
        headings=headings(evaluations),
        figures=figures,
        contrast=contrast,
        unsure=UNSURE if any(evaluation.coverage < 1 for evaluation in evaluations) else "",
        plots=plots,
    )
    write_whole(path, html.encode(), force=force)


def _plots(evaluation: Evaluation) -> str:
    """Draw the confusion matrix and the reliability diagram, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["text.parse_math"] = False  # a label may hold a dollar sign
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    confusion, reliability = figure.subplots(1, 2)
    ticks = range(len(evaluation.labels))
    confusion.imshow(evaluation.confusion, cmap="Blues")
    confusion.set(xlabel="answer", ylabel="label", title="confusion", xticks=ticks, yticks=ticks)
    confusion.set_xticklabels(evaluation.labels, rotation=45, ha="right")
    confusion.set_yticklabels(evaluation.labels)
    most = max(map(max, evaluation.confusion))
    for i, counts in enumerate(evaluation.confusion):
        for j, count in enumerate(counts):
            confusion.text(j, i, count, ha="center", va="center", color="white" if count > most / 2 else "black")
    bins = [b for b in evaluation.reliability if b.rows]
    reliability.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    reliability.plot([b.confidence for b in bins], [b.accuracy for b in bins], marker="o")
    reliability.set(
        xlabel="probability of the answer", ylabel="share right", title="reliability", xlim=(0, 1), ylim=(0, 1)
    )
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return "<svg" + stream.getvalue().partition("<svg")[2]  # without the XML declaration
