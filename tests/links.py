"""What a page would load from elsewhere."""

from html.parser import HTMLParser


def links_of(html: str) -> list[str]:
    parser = _Links()
    parser.feed(html)
    return parser.found


class _Links(HTMLParser):
    """Finds what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "link", "img", "iframe"):
            self.found.append(tag)
        self.found += [
            str(v)
            for k, v in named.items()
            if k in ("src", "href", "xlink:href") and not str(v).startswith(("#", "data:"))
        ]
