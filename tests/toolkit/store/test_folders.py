"""Folders are there whole or not at all, whatever stops the writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptexport.runtime.errors import OutputError
from ptexport.toolkit.store.folders import new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(path: Path, content: str = "new", *, force: bool = False) -> None:
    with new_folder(path, force=force, files=["marker"]) as folder:
        (folder / "marker").write_text(content)


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "marker").read_text() == "new"
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_writer_that_stops(stop: type[BaseException], tmp_path: Path) -> None:
    def write_half(*, force: bool) -> None:
        with new_folder(tmp_path / "out", force=force, files=["marker"]) as folder:
            (folder / "marker").write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half(force=False)
    assert names(tmp_path) == []
    fill(tmp_path / "out", "old")
    with pytest.raises(stop):
        write_half(force=True)
    assert (names(tmp_path), (tmp_path / "out" / "marker").read_text()) == (["out"], "old")


def test_only_what_was_made_here_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fill(path, "old")
    with pytest.raises(OutputError, match="exists already; choose another name, or replace it with --force"):
        fill(path)
    fill(path, force=True)
    assert ((path / "marker").read_text(), names(tmp_path)) == ("new", ["out"])
    (path / "holiday.jpg").touch()
    with pytest.raises(OutputError, match=r"holds 'holiday\.jpg', a file that the new folder does not have"):
        fill(path, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="exists and is not a folder"):
        fill(tmp_path / "file", force=True)


FULL_DISK = """
import resource, sys
from pathlib import Path
from ptexport.toolkit.store.folders import new_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("x" * 2000)
"""

SLOW_MAKER = """
import sys, time
from pathlib import Path
from ptexport.toolkit.store.cache import cached_folder

def make(folder):
    with (Path(sys.argv[1]) / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(0.5)
    (folder / "file").write_text("made")

print((cached_folder("kind", "key", make=make) / "file").read_text())
"""


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        "out: cannot be written (File too large); check the path and its permissions, or free some space" in done.stderr
    )
    assert names(tmp_path) == []


def test_two_processes_make_a_cached_folder_once(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SLOW_MAKER, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["made\n"] * 2
    assert (tmp_path / "calls").read_text() == "x"
