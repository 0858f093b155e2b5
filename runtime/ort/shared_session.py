"""One session for all engines of a backbone in this process; knows keys, locks and forks, nothing of ONNX.

A session packs its own copy of the weights, hundreds of megabytes; what a task brings is kilobytes, given to every run.
"""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary


class SharedSession:
    """A session that is loaded once, and freed with the last graph that holds it."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._session: Any = None

    def load(self, make: Callable[[], Any]) -> Any:
        """Return the session; the first thread to ask makes it, others wait. If that fails the next one tries."""
        with self._loading:
            if self._session is None:
                self._session = make()
            return self._session


_lock = threading.Lock()
_of_key: WeakValueDictionary[Hashable, SharedSession] = WeakValueDictionary()


def shared_session(key: Hashable) -> SharedSession:
    """Find the session of a key, or begin one; it lives as long as somebody holds what is returned."""
    with _lock:
        return _of_key.setdefault(key, SharedSession())


def _forget() -> None:
    """Begin anew: the threads that a session computes with do not live on in a forked process."""
    global _lock, _of_key
    _lock, _of_key = threading.Lock(), WeakValueDictionary()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget)
