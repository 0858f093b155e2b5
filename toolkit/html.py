"""The common look of the HTML pages: each is one file that loads nothing else, not even from the network."""

import io
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ptexport.toolkit.tables import figure_columns

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Distinct in greyscale and with colour blindness (Okabe and Ito 2008); the first is the measured bundle.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
ACCENT, MUTED, OTHERS = COLOURS[0], "#666666", "#9aa7b1"
_WIDTH = 5.0  # inches of 72 points: the width of a phone, so that text of 12 points is legible there


def read_template(package: str, name: str) -> str:
    """Read a Jinja template that is installed with a package, such as `page.jinja` of `ptexport.toolkit`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def render(title: str, body: str, **values: Any) -> bytes:
    """Render a page as HTML in UTF-8.

    Args:
        title: title of the page.
        body: Jinja template of the content; see `read_template`. Values are escaped, except markup such as `svg`'s.
        values: variables of the template.
    """
    from jinja2 import DictLoader, Environment

    templates = {"page": read_template("ptexport.toolkit", "page.jinja"), "body": body}
    environment = Environment(autoescape=True, loader=DictLoader(templates), keep_trailing_newline=True)
    html: str = environment.get_template("page").render(title=title, **values)
    return html.encode()


_MOST_UNBROKEN = 20  # rows of the longest table that is printed on one page, or shown as blocks on a phone
_WIDE = 5  # columns of a table that is wider than a phone
_LONG = 40  # characters of a text that needs a wide column


def draw_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", highlight: int | None = None
) -> "Markup":
    """Draw a table whose figures break only before their brackets.

    On a phone, the rows of a wide table become blocks with a line per cell. A table that is wider than the page scrolls
    inside itself.

    Args:
        headings: headings of the columns.
        rows: cells, one per column; the first column names the rows.
        title: title above the table; "": none.
        highlight: number of a row to highlight.
    """
    from markupsafe import Markup

    kinds = _kinds(rows) or [""] * len(headings)
    head = "".join(_cell("th", heading, kind) for heading, kind in zip(headings, kinds, strict=True))
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            _cell("td", cell, kind, heading) for cell, kind, heading in zip(row, kinds, headings, strict=True)
        )
        body.append(f'<tr class="highlight">{cells}</tr>' if number == highlight else f"<tr>{cells}</tr>")
    above = Markup('<p class="title">{}</p>').format(title) if title else ""
    kind = "long" if len(rows) > _MOST_UNBROKEN else "blocks" if len(headings) >= _WIDE else "small"
    lines = "\n".join(body)
    return Markup(
        f'{above}<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>\n{lines}'
        "</table></div>"
    )


def _kinds(rows: Sequence[Sequence[str]]) -> list[str]:
    """Choose the class of each column: figures, text or long texts."""
    return [
        "" if right and number else "texts" if any(len(cell) > _LONG for cell in column) else "text"
        for number, (right, column) in enumerate(zip(figure_columns(rows), zip(*rows, strict=True), strict=True))
    ]


def _cell(tag: str, content: str, kind: str, heading: str = "") -> str:
    from markupsafe import escape

    parts = [str(escape(part)) for part in re.split(r" (?=\()", content)]
    inner = " ".join(parts if kind or tag == "th" or not content else [f"<span>{part}</span>" for part in parts])
    attributes = (f' class="{kind}"' if kind else "") + (f' data-heading="{escape(heading)}"' if heading else "")
    return f"<{tag}{attributes}>{inner}</{tag}>"


def draw_figure(title: str, draw: Callable[["Figure"], None], *, alt: str, height: float = 4) -> "Markup":
    """Draw a figure as SVG in a `<figure>` with its title, small enough that its text is legible on a phone.

    Args:
        title: title above the figure.
        draw: draws on a matplotlib figure.
        alt: what the figure shows, in words, for screen readers.
        height: height in inches of 72 points.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `bench`, is not installed.
    """
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure

    look = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ptexport",
        "text.parse_math": False,  # text stays text, and may contain a dollar sign
        "font.size": 12,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
    with mpl.rc_context(look):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = Markup(stream.getvalue().partition("<svg")[2])  # matplotlib has escaped its text
    opening = Markup('<figure><figcaption>{}</figcaption><svg role="img" aria-label="{}"').format(title, alt)
    return opening + drawn + Markup("</figure>")
