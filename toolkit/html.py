"""The common look of the HTML pages: each is one file that loads nothing else, not even from the network."""

import io
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

ACCENT, MUTED = "#1f6f8b", "#888888"


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


def svg(draw: Callable[["Figure"], None], *, width: float = 5, height: float = 4) -> "Markup":
    """Draw a figure as SVG, small enough that its text is legible on a phone.

    Args:
        draw: draws on a matplotlib figure.
        width: width in inches of 72 points.
        height: height in inches of 72 points.

    Raises:
        ModuleNotFoundError: matplotlib, of the extra `bench`, is not installed.
    """
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure

    text_stays_text = {"svg.fonttype": "none", "text.parse_math": False}  # a label may contain a dollar sign
    with mpl.rc_context({**text_stays_text, "svg.hashsalt": "ptexport"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return Markup("<svg" + stream.getvalue().partition("<svg")[2])  # matplotlib has escaped its text
