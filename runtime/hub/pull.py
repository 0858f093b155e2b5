"""`hub:OWNER/NAME[@REVISION]` -> a verified folder of the cache.

A bundle lies in the cache under its commit, as ordinary files: those in the cache of huggingface_hub are links, which
readers of bundles refuse.
"""

import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ptexport.runtime.bundle.folder import FILES, MANIFEST, Bundle
from ptexport.runtime.cache_dir import cache_home
from ptexport.runtime.errors import BundleError, HubError, disk_errors
from ptexport.runtime.hub.failures import connection_errors, download_errors, unreachable

PREFIX = "hub:"

_NAME = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 10

_log = logging.getLogger("ptexport.runtime")


class _Name(NamedTuple):
    """What `hub:OWNER/NAME[@REVISION]` names.

    Attributes:
        text: the name as given.
        repository: OWNER/NAME.
        revision: branch, tag or commit.
    """

    text: str
    repository: str
    revision: str

    def folder(self, commit: str) -> Path:
        """Return the folder of a commit in the cache."""
        return cache_home() / "hub" / f"{self.repository.replace('/', '--')}--{commit}"

    def commit_file(self) -> Path:
        """Return the file with the commit that the revision was when it was last used."""
        return self.folder(quote(self.revision, safe="") + ".commit")


def local_folder(bundle: str | Path) -> Path:
    """Return the folder of a bundle, which is downloaded first if the bundle is `hub:OWNER/NAME[@REVISION]`.

    The hub is asked for the commit of a branch or tag each time; if it cannot be reached, the last one that was
    downloaded is used. A commit that was downloaded before needs no request.

    Args:
        bundle: a folder, or a name on the hub; a Path is always a folder.

    Raises:
        HubError: the bundle cannot be downloaded.
        BundleError: what was downloaded is not a bundle, or does not match its manifest.
        OutputError: the cache cannot be written.
    """
    if not isinstance(bundle, str) or not bundle.startswith(PREFIX):
        return Path(bundle)
    match = _NAME.fullmatch(bundle)
    if match is None:
        raise HubError(f"{bundle}: not a name on the hub, need hub:OWNER/NAME or hub:OWNER/NAME@REVISION; correct it")
    name = _Name(bundle, match["repository"], match["revision"] or "main")
    commit = name.revision
    if _COMMIT.fullmatch(commit) is None or not name.folder(commit).is_dir():
        commit, files = _ask(name)
        if not name.folder(commit).is_dir():
            _download(name, commit, files)
        if commit != name.revision:
            _remember(name, commit)
    with suppress(OSError):  # a cache that is read-only
        os.utime(name.folder(commit))  # records the last use for `ptexport cache`
    return name.folder(commit)


def _ask(name: _Name) -> tuple[str, list[str]]:
    """Ask the hub for the commit of a revision and the bundle's files there.

    If it cannot answer, returns the commit that was used last, if it is in the cache, and no files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with download_errors(name.text, HubError, revision=name.revision):
        try:
            info = HfApi().model_info(name.repository, revision=name.revision, timeout=_TIMEOUT_S)
        except connection_errors() as e:
            if isinstance(e, HfHubHTTPError) and not _is_out_of_order(e.response.status_code):
                raise
            commit = _remembered(name)
            if commit is None or not name.folder(commit).is_dir():
                raise
            _log.warning("%s: %s; uses commit %s from the cache", name.text, unreachable(), commit[:12])
            return commit, []
    there = {file.rfilename for file in info.siblings or ()}
    if MANIFEST not in there:
        raise BundleError(
            f"{name.text}: has no {MANIFEST} on the hub, need a bundle that 'ptexport push' put there; check the name"
        )
    commit = info.sha or ""
    if _COMMIT.fullmatch(commit) is None:  # it becomes the name of a folder
        raise HubError(f"{name.text}: the hub names the commit {commit[:50]!r}, need 40 digits; check HF_ENDPOINT")
    return commit, [file for file in FILES if file in there]


def _is_out_of_order(status: int) -> bool:
    return status == 429 or status >= 500


def _download(name: _Name, commit: str, files: list[str]) -> None:
    """Download a commit, verify it and move it to its place; after an interruption, whole files are kept.

    One file after the other, in this thread, since Ctrl-C would wait for the other threads of `snapshot_download`.
    """
    from filelock import FileLock
    from huggingface_hub import hf_hub_download

    folder = name.folder(commit)
    partial = folder.with_name(f".{folder.name}.partial")
    advice = "set XDG_CACHE_HOME to a writable folder with enough space"
    with disk_errors(folder, advice), download_errors(name.text, HubError, revision=name.revision):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.is_dir():  # another process has downloaded it
                return
            for file in files:
                hf_hub_download(name.repository, file, revision=commit, local_dir=partial)
            try:
                Bundle.open(partial)
            except BundleError as e:
                shutil.rmtree(partial)
                raise type(e)(f"{name.text}: {str(e).replace(f'{partial}{os.sep}', '')}") from e
            shutil.rmtree(partial / ".cache")  # notes of huggingface_hub
            partial.rename(folder)


def _remember(name: _Name, commit: str) -> None:
    with suppress(OSError):  # a cache that is read-only
        if _remembered(name) != commit:
            new = name.commit_file().with_name(f".{name.commit_file().name}.{os.getpid()}")
            new.write_text(commit, encoding="ascii")
            new.replace(name.commit_file())


def _remembered(name: _Name) -> str | None:
    try:
        commit = name.commit_file().read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None
