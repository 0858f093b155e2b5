"""Names -> the tasks that a server has now."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.task import Task
from ptexport.runtime.errors import UnknownModelError


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One task of an open engine.

    Attributes:
        name: its name.
        version: first 12 hex digits of the manifest's digest.
        task: the task.
        engine: the engine, which stays open while a request has the model.
    """

    name: str
    version: str
    task: Task
    engine: Engine


def version_of(engine: Engine) -> str:
    """Return the version of an engine's models: the first 12 hex digits of the manifest's digest."""
    return engine.manifest.digest[:12]


class Models:
    """The models of a server, which come from several sources. Thread-safe; readers never wait.

    Where two sources have a model of one name, the later source wins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, Engine] = {}
        self._by_name: Mapping[str, Model] = {}

    def put(self, source: str, engine: Engine) -> None:
        """Serve the tasks of an engine in place of what the source had."""
        with self._lock:
            self._sources.pop(source, None)
            self._sources[source] = engine
            self._rebuild()

    def drop(self, source: str) -> None:
        """Serve the tasks of a source no longer; requests that have them finish."""
        with self._lock:
            self._sources.pop(source, None)
            self._rebuild()

    def find(self, name: str, version: str | None = None) -> Model:
        """Return a model.

        Raises:
            UnknownModelError: there is no such model, or it has another version.
        """
        by_name = self._by_name
        model = by_name.get(name)
        if model is None:
            need = " or ".join(map(repr, by_name)) or "none, since no model is loaded"
            raise UnknownModelError(f"model: got an unknown name, need {need}; correct it")
        if version is not None and version != model.version:
            raise UnknownModelError(f"version: got one that is not served, need {model.version!r}; correct it")
        return model

    def names(self) -> list[str]:
        """Return the names of all models."""
        return list(self._by_name)

    def all(self) -> list[Model] | None:
        """Return every model if there are several and all take the same texts; else None."""
        models = list(self._by_name.values())
        same = len({tuple(model.task.entry.fields) for model in models}) == 1
        return models if len(models) > 1 and same else None

    def snapshot(self) -> list[Model]:
        """Return every model."""
        return list(self._by_name.values())

    def _rebuild(self) -> None:
        self._by_name = {
            name: Model(name, version_of(engine), task, engine)
            for engine in self._sources.values()
            for name, task in engine.tasks.items()
        }
