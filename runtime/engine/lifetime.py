"""The state of an open engine, until it is closed or its process forks."""

import ctypes
import os
from typing import NamedTuple, NoReturn
from weakref import WeakSet

from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.forks import Process
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.errors import EngineError
from ptexport.runtime.ort.graph import Graph


class Loaded(NamedTuple):
    """Objects that are freed when an engine is closed."""

    encoders: TaskEncoders
    graph: Graph
    batcher: Batcher


class OpenState:
    """The objects that an engine opened. Thread-safe: a call that got them keeps them, even if the engine is closed.

    Args:
        encoders: text encoders of the tasks.
        graph: the loaded graph.
        batcher: computes the texts of async callers; None: one of its own.
    """

    def __init__(self, encoders: TaskEncoders, graph: Graph, batcher: Batcher | None = None) -> None:
        global _any
        self._held: Loaded | None = Loaded(encoders, graph, batcher or Batcher())
        self._process = Process.current()
        _any = True
        _all.add(self)

    def get(self) -> Loaded:
        """Return the objects.

        Raises:
            EngineError: the engine was closed, or this process was forked from the one that opened it.
        """
        self._process.check("engine: was opened")
        held = self._held
        if held is None:
            raise EngineError("engine: is closed; open the bundle again")
        return held

    def close(self) -> None:
        """Release the objects; they are freed once no call uses them. A second call has no effect."""
        self._held = None

    def __reduce__(self) -> NoReturn:
        raise EngineError("engine: cannot be sent to another process; send the bundle's path and open it there")

    def keep_for_ever(self) -> None:
        """Make the objects immortal."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._held))


_all: WeakSet[OpenState] = WeakSet()
_any = False
"""Whether an OpenState was ever made."""


def _forked() -> None:
    """Keep inherited state alive and unusable: threads do not survive a fork.

    In a forked process an inherited session may wait for its threads for ever, when it runs and when it is freed, at
    the latest when the process ends (onnxruntime 1.31). Its memory is shared with the parent. Tokenizers, new ones too,
    would wait for their library's threads if TOKENIZERS_PARALLELISM were true; the library reads it before each batch.
    """
    if _any:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for state in _all:
        state.keep_for_ever()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_forked)
