"""The house: rooms import only downwards, say what they do, and are drawn in docs/architecture.md as they are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "toolkit", "exporters")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
}
PACKAGES = sorted(path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
MAY_IMPORT = {
    "runtime": {"runtime"},
    "toolkit": {"runtime", "toolkit"},
    "exporters": {"runtime", "toolkit", "exporters"},
}


def room_of(module: str) -> str:
    """Name a module's room; a file that stands beside the rooms of a folder is a room of its own."""
    parts = module.split(".")
    return module if len(parts) == 2 else ".".join(parts[:-1])


def imports_of(path: Path) -> Iterator[str]:
    """List the modules of ours that a file imports, inside functions too; a package stands for what it re-exports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Import) and any(alias.name.startswith("ptexport") for alias in node.names))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ptexport."):
            module = str(node.module).removeprefix("ptexport.")
            for name in [module] if module in MODULES else [f"{module}.{alias.name}" for alias in node.names]:
                package = ROOT / module.replace(".", "/") / "__init__.py"
                if name not in MODULES:
                    assert package.is_file(), f"{path}: {name}"
                yield from [name] if name in MODULES else imports_of(package)


def edges() -> dict[str, set[str]]:
    """List which rooms each room imports, from the imports themselves."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        room = room_of(module)
        imported = {room_of(other) for other in imports_of(path)}
        found[room] = found.get(room, set()) | (imported - {room})
    return found


def reachable(graph: dict[str, set[str]], room: str) -> set[str]:
    seen: set[str] = set()
    left = [room]
    while left:
        for below in graph.get(left.pop(), set()) - seen:
            seen.add(below)
            left.append(below)
    return seen


def test_no_room_imports_a_room_that_imports_it() -> None:
    graph = edges()
    assert [room for room in graph if room in reachable(graph, room)] == []


def test_the_folders_import_as_designed() -> None:
    wrong = [
        f"{room} imports {below}"
        for room, others in edges().items()
        for below in others
        if below.split(".")[0] not in MAY_IMPORT[room.split(".")[0]] and room != "toolkit.cli"
    ]
    assert wrong == []


def test_only_the_command_line_stands_above_the_command_line_and_benches() -> None:
    users = {below: room for room, others in edges().items() for below in others}
    assert users.get("toolkit.cli") is None
    assert {room for room, others in edges().items() if any(o.startswith("toolkit.bench") for o in others)} <= {
        "toolkit.cli",
        *(room for room in edges() if room.startswith("toolkit.bench")),
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_is_one_sentence_and_lists_its_files(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    if package.parent == ROOT:
        listed = set(re.findall(r"^    (\w+)(?:\.py)?  ", docstring, re.MULTILINE))
        parts = {path.stem if path.is_file() else path.name for path in package.iterdir() if is_ours(path)}
        assert listed == parts
        return
    assert re.match(r"[^\n]+ (->|<->) [^\n]+\.$", docstring.splitlines()[0]) or "accepts" in docstring
    listed = set(re.findall(r"^ *(\w+)\.py ", docstring, re.MULTILINE))
    if package.name == "systems":  # the systems themselves are named in prose
        listed |= set(re.findall(r"\b(\w+)\b", docstring)) & {path.stem for path in package.glob("*.py")}
    assert listed == {path.stem for path in package.glob("*.py")} - {"__init__"}


def is_ours(path: Path) -> bool:
    return (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file()


def drawn() -> dict[str, set[str]]:
    """Read the arrows of the picture in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = page.split("```mermaid\n")[1].split("```")[0]
    found: dict[str, set[str]] = {}
    for line in picture.splitlines():
        if arrow := re.fullmatch(r"\s*([\w.]+) --> ([\w. &]+)", line):
            found.setdefault(arrow[1], set()).update(part.strip() for part in arrow[2].split("&"))
    return found


def test_the_picture_is_what_the_imports_are() -> None:
    """An arrow is an import, and an import is an arrow or a way along arrows."""
    graph, picture = edges(), drawn()
    assert {(room, below) for room, others in picture.items() for below in others - graph.get(room, set())} == set()
    assert {(room, below) for room, others in graph.items() for below in others - reachable(picture, room)} == set(), (
        "draw these arrows"
    )
