"""Writes folders whole or not at all, and keeps the cache; knows nothing of what is in them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from ptexport.runtime.errors import OutputError, PtexportError


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
        raise OutputError(f"{path}: holds {strange[0]!r}, which ptexport did not write; choose another name")


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
    path = path.resolve()
    check_free(path, force=force, files=files)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except PtexportError:
        raise
    except (OSError, SafetensorError) as e:  # safetensors has a name of its own for what the disk says
        why = getattr(e, "strerror", None) or e
        raise OutputError(f"{path}: cannot be written ({why}); choose another disk or free some space") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def cached_folder(*key: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made first if it is not there; two processes at once make it once.

    Args:
        key: its name under `$XDG_CACHE_HOME/ptexport`, part by part.
        make: fills an empty folder.

    Raises:
        OutputError: the disk refuses.
    """
    path = cache_home().joinpath(*key)
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(
            f"{path}: cannot be made ({e.strerror}); set XDG_CACHE_HOME to a folder you may write to"
        ) from e
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.is_dir():
            with new_folder(path) as folder:
                make(folder)
    return path


def cache_home() -> Path:
    """Where converted models and traced backbones are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptexport"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
