"""One session for all engines of a backbone in this process.

A session packs its own copy of the weights, hundreds of megabytes. The arrays of a task are kilobytes, passed to each
run.
"""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary


class SharedSession:
    """A session that is loaded once, and freed with the last graph that refers to it."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._session: Any = None

    def load(self, make: Callable[[], Any]) -> Any:
        """Return the session. The first caller makes it while others wait; if that fails, the next one tries again."""
        with self._loading:
            if self._session is None:
                self._session = make()
            return self._session


_lock = threading.Lock()
_of_key: WeakValueDictionary[Hashable, SharedSession] = WeakValueDictionary()


def shared_session(key: Hashable) -> SharedSession:
    """Return the shared session of a key, a new one if there is none; it lives as long as a reference to it."""
    with _lock:
        return _of_key.setdefault(key, SharedSession())


def _forget() -> None:
    """Forget all sessions in a forked process, where their threads do not exist."""
    global _lock, _of_key
    _lock, _of_key = threading.Lock(), WeakValueDictionary()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_forget)
