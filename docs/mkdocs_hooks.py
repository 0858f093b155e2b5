"""MkDocs hooks for the documentation site: pages from outside of docs/, and Mermaid diagrams without JavaScript.

The home page is README.md, so that it exists once. The Python API page lists `ptexport.runtime.__all__`, so that a new
name needs no edit. `mkdocs.yml` loads this file.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import ptexport.runtime

ROOT = Path(__file__).parents[1]
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NODE = re.compile(r'(\w+)\["(.*)"\]')
_CHAIN = re.compile(r"\w+( --> \w+)+")
_ARROW = re.compile(r"[\w.]+ --> [\w.]+( & [\w.]+)*")


def on_startup(**_: Any) -> None:
    """Link runtime/ under its import name, as `make check` does: mkdocstrings reads files without importing them."""
    link = ROOT / "build" / "types" / "ptexport" / "runtime"
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(ROOT / "runtime")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the README, the changelog, the Python API and the examples to the files of the site."""
    pages: dict[str, Callable[[], str]] = {
        "index.md": lambda: (ROOT / "README.md").read_text("utf-8").replace("](CHANGELOG.md", "](changelog.md"),
        "changelog.md": lambda: (ROOT / "CHANGELOG.md").read_text("utf-8"),
        "api.md": api_page,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text().replace("](docs/", "](")))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the examples into the site, and draw the diagrams."""
    return _MERMAID.sub(lambda found: draw(found[1]), markdown.replace("](../examples/", "](examples/"))


def api_page() -> str:
    """Return the page that mkdocstrings fills from the docstrings of the public names."""
    lines = [
        "# Python API",
        "",
        "The public names of `ptexport.runtime`. See also [Embedding ptexport](embedding.md).",
        "",
    ]
    names = sorted(ptexport.runtime.__all__, key=lambda name: name.endswith("Error"))
    return "\n".join([*lines, *(f"::: ptexport.runtime.{name}" for name in names), ""])


def draw(diagram: str) -> str:
    """Return a Mermaid flowchart as HTML, since the theme would load Mermaid from another host.

    Args:
        diagram: `flowchart LR`, nodes as `name["text"]`, and one chain `a --> b --> c`; or `flowchart TD` and arrows
            `a --> b & c`, which become a table.

    Raises:
        PluginError: the diagram has another line.
    """
    kind, *lines = [line.strip() for line in diagram.strip().splitlines()]
    if kind == "flowchart TD" and all(map(_ARROW.fullmatch, lines)):
        rows = (line.replace(" & ", ", ").split(" --> ") for line in lines)
        body = "".join(f"<tr><td><code>{room}</code></td><td>{below}</td></tr>" for room, below in rows)
        return f"<table><thead><tr><th>room</th><th>imports</th></tr></thead><tbody>{body}</tbody></table>"
    nodes = {found[1]: found[2] for line in lines if (found := _NODE.fullmatch(line))}
    chains = [line for line in lines if _CHAIN.fullmatch(line)]
    if kind != "flowchart LR" or len(chains) != 1 or len(nodes) + 1 != len(lines):
        raise PluginError(f"mermaid: got {diagram!r}, need one of the two forms; extend docs/mkdocs_hooks.py")
    boxes = "".join(f"<li>{nodes[name]}</li>" for name in chains[0].split(" --> "))
    return f'<ol class="flowchart">{boxes}</ol>'
