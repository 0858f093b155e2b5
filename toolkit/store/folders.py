"""Files -> a folder, written atomically; also copies files."""

import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ptexport.runtime.errors import OutputError, disk_errors

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file, copy on write
_LOCK = ".lock"


def check_free(path: Path, *, force: bool, files: Collection[str]) -> None:
    """Check that an output folder can be written, before the work for it starts.

    Args:
        path: the folder to write.
        force: whether an existing folder may be replaced.
        files: names of all files that the folder may contain; a folder with other files is never replaced.

    Raises:
        OutputError: the folder exists and may not be replaced.
    """
    if not path.exists():
        return
    if not path.is_dir() or path.is_mount():
        raise OutputError(
            f"{path}: exists and is {'a mount point' if path.is_dir() else 'not a folder'}; choose another"
        )
    if not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    strange = sorted({entry.name for entry in path.iterdir()} - set(files))
    if strange:
        raise OutputError(
            f"{path}: holds {strange[0]!r}, a file that the new folder does not have; choose another name"
        )


@contextmanager
def new_folder(path: Path, *, force: bool = False, files: Collection[str] = ()) -> Iterator[Path]:
    """Fill a temporary folder beside `path` and rename it when the block ends; on an error remove it.

    Args:
        path: the folder to write.
        force: replace an existing folder when the new one is complete.
        files: see `check_free`.

    Raises:
        OutputError: the folder exists and may not be replaced, or it cannot be written.
    """
    path = _named(path)
    check_free(path, force=force, files=files)
    temporary: Path | None = None
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            check_free(path, force=force, files=files)  # another process may have created it meanwhile
            _replace(path, temporary)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_kept(path: Path, *, resume: bool, force: bool, files: Collection[str], state: str) -> bool:
    """Check that `kept_folder` can start, and return whether it may replace an existing folder; takes its arguments.

    Raises:
        OutputError: the folder exists, or work was interrupted that is not to be resumed.
    """
    path = _named(path)
    partial = _partial(path)
    files = (*files, f"{state}.new", _LOCK)
    may_replace = force or (resume and any((folder / state).is_file() for folder in (partial, path)))
    check_free(path, force=may_replace, files=files)
    if partial.exists() and not resume and not force:
        raise OutputError(f"{partial}: left by an interrupted run; continue with --resume, or start over with --force")
    check_free(partial, force=True, files=files)
    return may_replace


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextmanager
def kept_folder(path: Path, *, resume: bool, force: bool, files: Collection[str], state: str) -> Iterator[Path]:
    """Fill `PATH.partial` and rename it when the block ends; on an error keep its state, so that work can be resumed.

    Args:
        path: the folder to write.
        resume: continue from the state in `PATH.partial`, or in a folder of a run that was cut short.
        force: replace an existing folder when the new one is complete, and start from the beginning.
        files: see `check_free`; contains `state`.
        state: name of the file with the state of the work.

    Raises:
        OutputError: the folder exists, another process is writing it, or it cannot be written.
    """
    path = _named(path)
    partial = _partial(path)
    may_replace = check_kept(path, resume=resume, force=force, files=files, state=state)
    with disk_errors(path):
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            _prepare(partial, path, state, resume=resume)
            try:
                yield partial
            except BaseException:
                if _holds_nothing_new(partial / state, path / state):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            # Another process may have created it meanwhile.
            check_free(path, force=may_replace, files=(*files, f"{state}.new", _LOCK))
            _replace(path, partial)
            (path / _LOCK).unlink()  # after the rename, so that no other process takes the lock before


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        OutputError: another process holds it.
    """
    lock = FileLock(partial / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as e:
        raise OutputError(f"{partial}: another ptexport is writing it; wait for it, or choose another name") from e
    try:
        yield
    finally:
        lock.release()


def _prepare(partial: Path, path: Path, state: str, *, resume: bool) -> None:
    """Remove everything but the state to resume from; copy that from a run that was cut short, if necessary."""
    for left in partial.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != _LOCK and (left.name != state or not resume):
            left.unlink()
    if resume and (path / state).is_file() and not (partial / state).exists():
        shutil.copyfile(path / state, partial / f"{state}.new")
        (partial / f"{state}.new").rename(partial / state)


def _holds_nothing_new(state: Path, before: Path) -> bool:
    return not state.exists() or (before.is_file() and filecmp.cmp(state, before, shallow=False))


def _named(path: Path) -> Path:
    """Resolve `.` and `..` to a folder with a name; keep other paths as written, for messages."""
    return path.resolve() if path.name in ("", "..") else path


def _replace(path: Path, new: Path) -> None:
    """Rename a complete folder to its final name, and remove the old one after that."""
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
    """Copy a file, with shared blocks if the file system supports it (not a link: onnx rejects linked weights)."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        except OSError:
            pass  # another file system, or one without shared blocks
    shutil.copyfile(source, target)
