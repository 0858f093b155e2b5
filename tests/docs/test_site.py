"""The documentation site builds without a warning, and its pages load nothing from other hosts."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ptexport.runtime

ROOT = Path(__file__).parents[2]
LINKS_FOR_READERS = ("a", "area")
ABSOLUTE = re.compile(r"([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
CSS_REQUEST = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")
LOADS = ("src", "srcset", "href", "xlink:href", "action", "data", "poster")


class Requests(HTMLParser):
    """Collects what a browser loads for a page, and the classes of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.classes |= set(named.get("class", "").split())
        if tag not in LINKS_FOR_READERS:
            self.found += [named[name] for name in LOADS if name in named]
        self.found += CSS_REQUEST.findall(named.get("style", ""))


def requests_of(html: str) -> Requests:
    page = Requests()
    page.feed(html)
    page.found += [
        url for style in re.findall(r"<style.*?</style>", html, re.DOTALL) for url in CSS_REQUEST.findall(style)
    ]
    return page


def elsewhere(urls: list[str]) -> list[str]:
    return [url for url in urls if ABSOLUTE.match(url)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    expected = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert {"404.html", "index.html", "api.html", "changelog.html"} | expected == {
        path.name for path in site.glob("*.html")
    }
    assert not list(site.glob("*.py"))


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = {path: requests_of(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert {str(path): found for path, page in pages.items() if (found := elsewhere(page.found))} == {}
    assert not any("mermaid" in page.classes for page in pages.values()), "the theme would load Mermaid from a CDN"
    styles = {path: CSS_REQUEST.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.css")}
    assert {str(path): found for path, urls in styles.items() if (found := elsewhere(urls))} == {}


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        '<img src="http://example.org/a.png">',
        '<p style="background: url(https://example.org/a.png)">',
        '<style>@import "https://example.org/a.css";</style>',
    ],
)
def test_a_request_to_another_host_is_found(html: str) -> None:
    assert elsewhere(requests_of(html).found)


def test_the_home_page_is_the_readme_with_its_diagram(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert '<ol class="flowchart">' in page
    assert 'href="tutorial.html"' in page
    assert (site / "examples" / "bare_predict.py").is_file()


def test_the_api_page_documents_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for name in ptexport.runtime.__all__ if f'id="ptexport.runtime.{name}"' not in page]
    assert missing == []
    assert 'id="ptexport.runtime.Engine.predict"' in page
