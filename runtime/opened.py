"""What an engine opened, while it may be used: until it is closed, in the process that opened it."""

import ctypes
import os
from typing import Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from ptexport.runtime.errors import EngineError

_T = TypeVar("_T")


class Opened(Generic[_T]):
    """Holds what an engine opened. Thread-safe: who has got it keeps it, whoever closes it meanwhile."""

    def __init__(self, held: _T) -> None:
        global _any
        self._held: _T | None = held
        self._process = _process
        _any = True
        _all.add(self)

    def get(self) -> _T:
        """Return what is held.

        Raises:
            EngineError: it was closed, or this process was forked from the one that opened it.
        """
        if self._process is not _process:
            raise EngineError(
                "engine: was opened before this process was forked, and its threads stayed behind; "
                "open the bundle again in this process"
            )
        held = self._held
        if held is None:
            raise EngineError("engine: is closed; open the bundle again")
        return held

    def close(self) -> None:
        """Let it go; it is freed once nobody uses it. Closing twice is closing once."""
        self._held = None

    def __reduce__(self) -> NoReturn:
        raise EngineError("engine: cannot be sent to another process; send the bundle's path and open it there")

    def keep_for_ever(self) -> None:
        """Make what is held immortal."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._held))


_process = object()
"""Stands for this process; another one after a fork. A process id would not do: ids are given again."""

_all: WeakSet[Opened[Any]] = WeakSet()
_any = False
"""Whether there ever was one."""


def _forked() -> None:
    """Keep what was inherited, and let nobody use it: threads do not live on in a forked process.

    Running an inherited session may wait for its threads for ever, and so does freeing it, which would be at the latest
    when the process ends (onnxruntime 1.31). Its memory is the parent's, shared. Tokenizers, new ones too, would wait
    for their library's threads if TOKENIZERS_PARALLELISM is set; it looks there before each batch.
    """
    global _process
    if _any:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for opened in _all:
        opened.keep_for_ever()
    _process = object()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forked)
