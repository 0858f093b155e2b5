"""Writes folders whole or not at all, and copies files; knows nothing of what is in them."""

import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ptexport.runtime.errors import OutputError, saying_what_the_disk_refused

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one of the two is written to


def check_free(path: Path, *, force: bool, files: Collection[str]) -> None:
    """Refuse an output folder that is in use, before any work is done for it.

    Args:
        path: the folder to be made.
        force: whether one that exists may be replaced.
        files: names of all files that are written there; a folder with any other in it is never replaced.

    Raises:
        OutputError: the folder exists and may not be replaced.
    """
    if not path.exists():
        return
    if not path.is_dir() or path.is_mount():
        raise OutputError(f"{path}: exists and is {'a mount point' if path.is_dir() else 'no folder'}; choose another")
    if not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    strange = sorted({entry.name for entry in path.iterdir()} - set(files))
    if strange:
        raise OutputError(
            f"{path}: holds {strange[0]!r}, which is no part of what would replace it; choose another name"
        )


@contextmanager
def new_folder(path: Path, *, force: bool = False, files: Collection[str] = ()) -> Iterator[Path]:
    """Fill a temporary folder beside `path` and rename it when the block ends; on any error nothing is left.

    Args:
        path: the folder to make.
        force: replace a folder that exists, once the new one is complete.
        files: see `check_free`.

    Raises:
        OutputError: the folder exists and may not be replaced, or the disk refuses.
    """
    path = _named(path)
    check_free(path, force=force, files=files)
    temporary: Path | None = None
    try:
        with saying_what_the_disk_refused(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            check_free(path, force=force, files=files)  # somebody may have put something there meanwhile
            _replace(path, temporary)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def kept_folder(path: Path, *, resume: bool, force: bool, files: Collection[str], state: str) -> Iterator[Path]:
    """Fill `PATH.partial` and rename it when the block ends; on any error its state stays, for work that can go on.

    Args:
        path: the folder to make.
        resume: go on in a `PATH.partial`, or from the state in a folder that was finished before its time.
        force: replace a folder that exists, once the new one is complete, and begin anew.
        files: see `check_free`; the state is one of them.
        state: name of the file that work goes on from.

    Raises:
        OutputError: the folder exists or is being made, may not be replaced, or the disk refuses.
    """
    path = _named(path)
    partial = path.with_name(path.name + ".partial")
    goes_on = resume and any((folder / state).is_file() for folder in (partial, path))
    files = (*files, f"{state}.new", _LOCK)
    check_free(path, force=force or goes_on, files=files)
    if partial.exists() and not resume and not force:
        raise OutputError(f"{partial}: begun before; go on with --resume, or begin anew with --force")
    check_free(partial, force=True, files=files)
    with saying_what_the_disk_refused(path):
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as e:
            raise OutputError(f"{partial}: another ptexport is writing it; wait for it, or choose another name") from e
        try:
            for left in partial.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != _LOCK and (left.name != state or not resume):
                    left.unlink()
            if resume and (path / state).is_file() and not (partial / state).exists():
                shutil.copyfile(path / state, partial / f"{state}.new")
                (partial / f"{state}.new").rename(partial / state)
            try:
                yield partial
            except BaseException:
                if _holds_nothing_new(partial / state, path / state):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            check_free(path, force=force or goes_on, files=files)  # somebody may have put something there meanwhile
            _replace(path, partial)
            (path / _LOCK).unlink()  # after the rename, so that nobody else takes it before
        finally:
            lock.release()


_LOCK = ".lock"


def _holds_nothing_new(state: Path, before: Path) -> bool:
    return not state.exists() or (before.is_file() and filecmp.cmp(state, before, shallow=False))


def _named(path: Path) -> Path:
    """Give `.` and `..` the name of the folder they are; others stay as they were written, for messages."""
    return path.resolve() if path.name in ("", "..") else path


def _replace(path: Path, new: Path) -> None:
    """Put a complete folder where an old one may be; the old one goes when the new one is there."""
    if not path.exists():
        new.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / path.name)
    new.rename(path)
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def clone(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can (never a link: onnx refuses linked weights)."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        except OSError:
            pass  # another file system, or one that cannot share
    shutil.copyfile(source, target)
