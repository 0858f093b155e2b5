"""Writes one file atomically, and refuses a path that cannot be written before any work is done for it."""

import os
from pathlib import Path

from ptexport.runtime.errors import OutputError, saying_what_the_disk_refused


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with saying_what_the_disk_refused(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before what it is for is computed.

    Raises:
        OutputError: it is there and is not to be replaced, or its folder is not there or cannot be written to.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: is no folder; make it, or choose another")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: cannot be written (Permission denied); choose another folder")
