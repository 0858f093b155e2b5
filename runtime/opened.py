"""A verified bundle -> its tokenizers and graph, proved on this machine, while they may be used; knows no labels.

That is until they are closed, in the process that opened them. Engines of any kind are made of it.
"""

import ctypes
import math
import os
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar
from weakref import WeakSet

from ptexport.runtime.bundle import MODEL, WEIGHTS, Bundle, TasksBundle, check_unchanged
from ptexport.runtime.chunks import Turns
from ptexport.runtime.errors import EngineError
from ptexport.runtime.graph import Execution, Graph
from ptexport.runtime.info import EngineInfo, info_of
from ptexport.runtime.manifest import Manifest, TasksManifest

_Encoders = TypeVar("_Encoders")


class Loaded(NamedTuple, Generic[_Encoders]):
    """What is freed when it is closed."""

    encoders: _Encoders
    graph: Graph
    turns: Turns


class Opened(Generic[_Encoders]):
    """What an engine opened. Thread-safe: who has got it keeps it, whoever closes it meanwhile.

    Args:
        manifest: of the bundle.
        encoders: its tokenizer, or those of its tasks.
        graph: loaded.
        golden_max_abs_diff: as `EngineInfo` has it.
    """

    def __init__(
        self,
        manifest: Manifest | TasksManifest,
        encoders: _Encoders,
        graph: Graph,
        golden_max_abs_diff: float = math.nan,
    ) -> None:
        global _any
        self._manifest = manifest
        self._golden = golden_max_abs_diff
        self._held: Loaded[_Encoders] | None = Loaded(encoders, graph, Turns())
        self._process = _process
        _any = True
        _all.add(self)

    @classmethod
    def open(
        cls,
        bundle: Bundle | TasksBundle,
        execution: Execution,
        *,
        max_length: int,
        encoders: Callable[[], _Encoders],
        prove: Callable[[_Encoders, Graph], float],
        share: bool = True,
    ) -> "Opened[_Encoders]":
        """Load a bundle's graph and then its tokenizers, which fit into what loading that has freed; run golden rows.

        Args:
            bundle: verified; it is looked at again when all is loaded.
            execution: how to run it.
            max_length: most ids of a row.
            encoders: makes them.
            prove: runs the golden rows and returns the largest difference of a logit, or raises.
            share: whether bundles of one backbone share a session.

        Raises:
            As `Execution.open`.
        """

        def finish(graph: Graph) -> "Opened[_Encoders]":
            made = encoders()
            return cls(bundle.manifest, made, graph, prove(made, graph))

        opened = execution.open(bundle.path / MODEL, bundle.manifest.files, max_length, finish, share=share)
        check_unchanged(bundle)
        return opened

    def get(self) -> Loaded[_Encoders]:
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

    def info(self) -> EngineInfo:
        """Say what runs where."""
        return info_of(
            self.get().graph,
            golden_max_abs_diff=self._golden,
            bundle=self._manifest.digest,
            weights_sha256=self._manifest.files[WEIGHTS].sha256,
        )

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
