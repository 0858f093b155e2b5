"""The one look of the HTML pages: each is a file that needs nothing else, not even a network."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

ACCENT, MUTED = "#1f6f8b", "#888888"

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
p { overflow-wrap: anywhere; }
h1 { font-size: 1.6em; line-height: 1.25; }
h2 { font-size: 1.2em; margin-top: 1.8em; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .8rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:not(:first-child) { white-space: nowrap; }
.breaks td { white-space: normal; }
.breaks span { white-space: nowrap; }
.wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.plots svg { flex: 1 1 20rem; min-width: 0; max-width: 32rem; width: 100%; height: auto; }
.note { color: #666; font-size: .9em; }
@media screen and (min-width: 30rem) { .breaks :is(th, td):not(:first-child) { padding: .2rem .5rem; } }
@media (max-width: 30rem) { th, td { padding: .2rem .4rem; } }
@media print {
  body { font-size: 10pt; margin: 0; max-width: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .4rem; }
  td:not(:first-child) { white-space: normal; }
  table, tr, svg, li, p { break-inside: avoid; }
  table.long { break-inside: auto; }
  tr:nth-last-child(-n+3) { break-before: avoid; }
  h1, h2 { break-after: avoid; }
  .wide + .note { break-before: avoid; }
}
</style>
"""


def render(title: str, body: str, **values: Any) -> bytes:
    """Fill a page.

    Args:
        title: of the page.
        body: a Jinja template of what stands under the title; values are escaped, but for `svg`'s.
        values: what the template names.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_PAGE + body + "</html>\n")
    html: str = template.render(title=title, **values)
    return html.encode()


def svg(draw: Callable[["Figure"], None], *, width: float = 5, height: float = 4) -> "Markup":
    """Draw a figure for a page, as small as a phone so that its text can be read there.

    Args:
        draw: draws on it.
        width: in inches, of 72 points.
        height: likewise.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `bench`, is not installed.
    """
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure

    text_stays_text = {"svg.fonttype": "none", "text.parse_math": False}  # a label may hold a dollar sign
    with mpl.rc_context({**text_stays_text, "svg.hashsalt": "ptexport"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return Markup("<svg" + stream.getvalue().partition("<svg")[2])  # our own, its text escaped
