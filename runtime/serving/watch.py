"""A folder whose bundles and packs come, change and go -> models.

A folder with a `manifest.json` is a bundle, a file `*.ptpack` is a pack; names that start with a dot are ignored. An
entry is opened once two looks found it alike, so that a file is not opened while it is copied. It replaces what it was
before only when it is verified, its golden rows agree and it is warm; if it is bad, what it was before stays.
"""

import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ptexport.runtime.bundle.folder import ENGINE_FILES, MANIFEST, MULTITASK_FILES, ONE_TASK_FILES
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BundleError, MissingBackboneError, PackError, PtexportError, reason
from ptexport.runtime.monitoring.logs import Event
from ptexport.runtime.packs.pack_file import Pack
from ptexport.runtime.serving.models import Model, version_of

POLL_S = 0.25
"""Seconds between two looks at the folder."""

SUFFIX = ".ptpack"

_OF_RUNS = "metrics.json"  # the folder of a training run is refused with a sentence
_FILES = sorted({MANIFEST, _OF_RUNS, *ONE_TASK_FILES, *MULTITASK_FILES, *ENGINE_FILES})

Identity = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of the last write of each file of an entry."""


class _Entry(NamedTuple):
    """A bundle or pack. Bundles sort before packs, which need them, and the one that came last is the last."""

    is_pack: bool
    changed_ns: int  # a rename changes it
    name: str
    identity: Identity
    problem: str | None = None  # why it cannot be looked at


class Served(Protocol):
    """What is served, such as `Models`."""

    def put(self, source: str, engine: Engine) -> None:
        """Serve the tasks of an engine in place of what the source had."""
        ...

    def drop(self, source: str) -> None:
        """Serve the tasks of a source no longer."""
        ...

    def snapshot(self) -> list[Model]:
        """Return every model."""
        ...


class Log(Protocol):
    """Takes what happened, with fields to write down; none is from a request."""

    def __call__(self, event: Event, **fields: object) -> None:
        """Take an event: model-loaded, model-swapped, model-removed, model-refused, watch-failed or watch-resumed."""
        ...


def open_pack(path: Path, engines: Sequence[Engine]) -> Engine:
    """Open a pack on the first engine that it fits.

    Raises:
        MissingBackboneError: it fits none.
        PackError: the file is not a pack, was changed, or is for another graph.
        BundleError: the engine's folder was changed since, or the golden rows have other logits here.
        ProviderError: the engine's session cannot be shared.
    """
    pack = Pack.read(path)
    for engine in engines:
        try:
            return engine.open_pack(path)
        except PackError:  # it is for another one
            continue
    need = pack.record.manifest
    kind = "several tasks" if len(need.tasks) > 1 else "one task"
    raise MissingBackboneError(
        f"{path}: got no open bundle that it fits, need one of {need.backbone.name} "
        f"({need.backbone.fingerprint[:16]}) in {need.graph.precision}, opset {need.graph.opset}, with {kind}; add one"
    )


class Watch:
    """Keeps models like the bundles and packs in a folder, on a thread of its own.

    Args:
        folder: the folder; it may be missing or unreadable for a time.
        models: gets the engines, each under the path of its entry.
        open_bundle: opens and verifies a bundle, with the server's options and batcher.
        log: learns what happened. Fields: `source`, the path; `models`, versions by name; `reason` of a refusal.
        open_pack: opens a pack on one of the open engines.
    """

    def __init__(
        self,
        folder: Path,
        models: Served,
        *,
        open_bundle: Callable[[Path], Engine],
        log: Log,
        open_pack: Callable[[Path, Sequence[Engine]], Engine] = open_pack,
    ) -> None:
        self._folder = folder
        self._models = models
        self._open_bundle = open_bundle
        self._open_pack = open_pack
        self._log = log
        self._looked: dict[str, Identity] = {}  # what the last look found
        self._done: dict[str, Identity] = {}  # what was opened, or refused
        self._waiting: set[str] = set()  # refused packs that another bundle may help
        self._served: dict[str, dict[str, str]] = {}  # versions by model, of what was opened
        self._readable = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ptexport-watch", daemon=True)

    def start(self) -> None:
        """Look once, open what is there, and go on looking on the watching thread."""
        self.look(settled=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what is being opened is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            self.look()

    def look(self, *, settled: bool = False) -> None:
        """Look at the folder once, and open, replace and drop what changed.

        Args:
            settled: take every entry as complete, though it was not seen before.
        """
        try:
            entries = _entries(self._folder)
        except OSError as e:
            if self._readable:
                why = f"{self._folder}: cannot be read ({e.strerror}); what was served stays, check the folder"
                self._log("watch-failed", reason=why)
            self._readable = False
            return
        if not self._readable:
            self._log("watch-resumed", source=str(self._folder))
        self._readable = True
        for name in sorted(self._done.keys() - {entry.name for entry in entries}):
            self._drop(name)
        for entry in entries:
            if self._stopping.is_set():
                return
            is_settled = settled or self._looked.get(entry.name) == entry.identity
            if entry.problem is not None:
                self._refuse_unreadable(entry)
            elif is_settled and self._done.get(entry.name) != entry.identity:
                self._open(entry)
        self._looked = {entry.name: entry.identity for entry in entries}

    def _drop(self, name: str) -> None:
        """Forget an entry that is gone."""
        del self._done[name]
        self._waiting.discard(name)
        if name in self._served:
            self._models.drop(str(self._folder / name))
            self._log("model-removed", source=str(self._folder / name), models=self._served.pop(name))

    def _refuse_unreadable(self, entry: _Entry) -> None:
        """Log once that an entry cannot be looked at; what it was before stays."""
        if self._done.get(entry.name) != entry.identity:
            self._done[entry.name] = entry.identity
            path = self._folder / entry.name
            self._log("model-refused", source=str(path), reason=f"{path}: cannot be read ({entry.problem}); replace it")

    def _open(self, entry: _Entry) -> None:
        """Open an entry, and serve it or refuse it."""
        path, name = self._folder / entry.name, entry.name
        self._done[name] = entry.identity
        self._waiting.discard(name)
        try:
            engine = self._open_pack(path, self._engines()) if entry.is_pack else self._open_bundle(path)
            engine.warm_up()
        except Exception as e:  # whatever is wrong with one entry, the server goes on
            if entry.is_pack and isinstance(e, BundleError | MissingBackboneError):
                self._waiting.add(name)
            why = str(e) if isinstance(e, PtexportError) else f"{path}: {type(e).__name__} ({reason(e)}); replace it"
            self._log("model-refused", source=str(path), reason=why)
            return
        self._models.put(str(path), engine)
        before = self._served.get(name, {})
        swapped = name in self._served
        self._served[name] = dict.fromkeys(engine.tasks, version_of(engine))
        self._log("model-swapped" if swapped else "model-loaded", source=str(path), models=self._served[name])
        gone = {model: version for model, version in before.items() if model not in engine.tasks}
        if gone:  # the file was replaced by one with other models
            self._log("model-removed", source=str(path), models=gone)
        if not entry.is_pack:
            for waiting in self._waiting:
                self._done[waiting] = ()
            self._waiting.clear()

    def _engines(self) -> list[Engine]:
        return list(dict.fromkeys(model.engine for model in self._models.snapshot()))


def _entries(folder: Path) -> list[_Entry]:
    """List the bundles and packs of a folder: bundles first, and what came last at the end.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    with os.scandir(folder) as inside:
        for entry in inside:
            if entry.name.startswith("."):
                continue
            is_pack = entry.name.endswith(SUFFIX)
            files = [folder / entry.name] if is_pack else [Path(entry.path, name) for name in _FILES]
            try:
                identity = _identity(files)
                changed_ns = entry.stat(follow_symlinks=False).st_ctime_ns
            except FileNotFoundError:  # it went at this moment
                continue
            except OSError as e:
                why = e.strerror or str(e)
                found.append(_Entry(is_pack, 0, entry.name, ((why, 0, 0, 0),), why))
                continue
            names = {name for name, *_ in identity}
            if names and (is_pack or names & {MANIFEST, _OF_RUNS}):
                found.append(_Entry(is_pack, changed_ns, entry.name, identity))
    return sorted(found, key=lambda entry: entry[:3])


def _identity(files: Sequence[Path]) -> Identity:
    """Identify the content of those files that exist, links followed, without reading them."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((file.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
