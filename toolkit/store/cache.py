"""The cache of converted models and traced backbones: creates entries once, lists and removes them."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.errors import OutputError, disk_errors
from ptexport.toolkit.store.folders import new_folder

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One folder of the cache.

    Attributes:
        path: path of the folder.
        size_bytes: total size of its files.
        unused_days: days since it was last used.
    """

    path: Path
    size_bytes: int
    unused_days: float


def cached_folder(*key: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, and create it if it is missing; concurrent processes create it once.

    Args:
        key: path under `$XDG_CACHE_HOME/ptexport`, part by part.
        make: function that fills an empty folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = cache_home().joinpath(*key)
    if path.is_dir():
        with contextlib.suppress(OSError):  # a read-only cache
            os.utime(path)  # records the last use
        return path
    advice = "set XDG_CACHE_HOME to a writable folder with enough space"
    with disk_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if not path.is_dir():
                with new_folder(path) as folder:
                    make(folder)
    return path


def list_entries() -> list[Entry]:
    """List the entries of the cache, including those that a killed process left unfinished."""
    entries = []
    for path in sorted(cache_home().glob("*/*")):
        with contextlib.suppress(FileNotFoundError):  # another process may rename or remove it now
            if not path.is_dir():
                continue
            size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            unused_days = (time.time() - path.stat().st_mtime) / _DAY_S
            entries.append(Entry(path=path, size_bytes=size_bytes, unused_days=unused_days))
    return entries


def prune(*, unused_days: float) -> list[Entry]:
    """Remove entries that were not used for a number of days; wait for entries that a process creates now.

    Args:
        unused_days: minimum days since the last use; 0: remove everything.

    Returns:
        The removed entries.

    Raises:
        OutputError: an entry cannot be removed.
    """
    removed = [entry for entry in list_entries() if entry.unused_days >= unused_days]
    for entry in removed:
        try:
            # An unfinished folder is `.NAME.random`; the process that fills it holds the lock of NAME.
            name = entry.path.name
            name = name[1:].rpartition(".")[0] if name.startswith(".") else name
            with FileLock(entry.path.with_name(name + ".lock")):
                shutil.rmtree(
                    entry.path, ignore_errors=entry.path.name.startswith(".")
                )  # it may have its final name by now
        except OSError as e:
            raise OutputError(f"{entry.path}: cannot be removed ({e.strerror}); check its permissions") from e
    return removed
