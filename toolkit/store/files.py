"""Content -> one file, written atomically; checks an output path before the work for it starts."""

import os
from pathlib import Path

from ptexport.runtime.errors import OutputError, disk_errors


def check_absent(path: Path, *, force: bool) -> None:
    """Refuse to replace a file without `force`.

    Raises:
        OutputError: it exists.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file atomically.

    Raises:
        OutputError: the file exists and `force` is not set, or it cannot be written.
    """
    check_absent(path, force=force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_output(path: Path, *, force: bool) -> None:
    """Check that a file can be written, before its content is computed.

    Raises:
        OutputError: the file exists and `force` is not set, or its folder is missing or not writable.
    """
    check_absent(path, force=force)
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: not a folder; create it, or choose another")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: cannot be written (Permission denied); choose another folder")
