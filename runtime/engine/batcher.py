"""Texts of concurrent callers -> batches on one engine thread.

    submit -> tokenising thread -> waiting rows -> engine thread -> result

While no other text waits, a few short ones are tokenised by their caller, which is quicker than to wake a thread.

A batch starts as soon as the engine thread is free; rows that arrive while it runs form the next one. The first row of
the caller that has waited longest is in it, and rows of similar length fill it up to the token budget. Callers take
turns: one with rows left goes to the end of the queue, so a small request waits for one batch of a large one.

Source: continuous batching by token budget, as in text-embeddings-inference (core/src/queue.rs).
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from ptexport.runtime.engine.admission import Admission
from ptexport.runtime.engine.answer import Answer, BatchRecord
from ptexport.runtime.engine.batching import Encoded, EncodedRow, run_batch
from ptexport.runtime.engine.caller import SLICE_TEXTS, Caller
from ptexport.runtime.engine.forks import Process
from ptexport.runtime.errors import DataError, DeadlineError
from ptexport.runtime.ort.graph import Graph

SHORT_CHARACTERS = 1000
"""Characters that a caller tokenises itself while no text of another one waits: they take at most 1 ms."""

PADDING_TOKENS = 16
"""A row joins a batch unless this adds more padding: a batch of its own costs about as much. examples/batch_cost.py
measures 18 on MiniLM and 20 on SmolLM2, on a busy machine."""

_CANDIDATES = 512  # waiting rows that are looked at for one batch
_Item = TypeVar("_Item")

_Taken = list[tuple[Caller, int, EncodedRow]]
"""The rows of a batch, each with its caller and its number there."""


class Batcher:
    """Computes the texts of concurrent callers in batches, on one engine thread. Thread-safe.

    Engines that are opened with one batcher take turns on its thread. It belongs to the process that made it.

    Args:
        max_batch_tokens: most tokens of a batch of several rows, padding included; None: what suits the device.
        max_delay_s: longest time that the first row of a batch waits for it to fill up while the engine is idle.
        max_waiting: most texts that may be submitted and not answered; None: any number. A request alone may be larger.
        on_batch: called after each batch, on the engine thread.

    Raises:
        DataError: a limit is out of range.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int | None = None,
        max_delay_s: float = 0.0,
        max_waiting: int | None = None,
        on_batch: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        for name, value, least in (("max_batch_tokens", max_batch_tokens, 1), ("max_waiting", max_waiting, 1)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise DataError(f"{name}: got {value!r}, need a whole number of at least {least}; correct it")
        if not 0 <= max_delay_s < math.inf:
            raise DataError(f"max_delay_s: got {max_delay_s!r}, need seconds of at least 0; correct it")
        self._max_batch_tokens = max_batch_tokens
        self._max_delay_s = max_delay_s
        self._on_batch = on_batch
        self._process = Process.current()
        self._changed = threading.Condition()
        self._untokenised: deque[Caller] = deque()  # one for each call of _encode_next that is to come
        self._queue: deque[Caller] = deque()  # callers with waiting rows
        self._served: list[Caller] = []  # those with rows in the last batch
        self._busy = False  # whether the engine thread forms or runs batches
        self._admission = Admission(max_waiting)
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="ptexport-tokenise")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="ptexport-engine")

    @property
    def waiting(self) -> int:
        """Texts that are submitted and not answered."""
        return self._admission.waiting

    def submit(
        self,
        graph: Graph,
        n: int,
        encode: Callable[[int, int], Encoded[_Item]],
        *,
        size_of: Callable[[int], int] = lambda _: 0,
        within_s: float | None = None,
        always: bool = False,
    ) -> "Future[Answer[_Item]]":
        """Compute some texts; cancelling the future drops the rows that no batch has taken.

        Args:
            graph: runs the rows.
            n: number of texts.
            encode: encodes the texts from one number up to another; called on the tokenising thread, slice by slice, or
                at once, if they are few and short and no others wait.
            size_of: gives the characters of a text, by its number.
            within_s: seconds after which the result is of no use: what remains then gets a DeadlineError; None: any
                time.
            always: take the texts however many wait.

        Raises:
            BusyError: too many texts wait, or those that wait are expected to take longer than `within_s`.
            EngineError: this process was forked from the one that made the batcher.
        """
        self._process.check("batcher: was made")
        caller = Caller(graph, n, encode, size_of, within_s)
        with self._changed:
            if not always:
                self._admission.check(n, within_s)
            alone = not self._admission.waiting
            self._admission.enter(n, graph.batch_rows)
        caller.future.add_done_callback(lambda _: self._forget(n, graph.batch_rows))  # without the caller: no cycle
        if not n:
            caller.future.set_result(caller.answer())
        elif alone and n <= SLICE_TEXTS and sum(map(size_of, range(n))) <= SHORT_CHARACTERS:
            try:
                self._encode(caller)
            except BaseException:  # such as KeyboardInterrupt, on the caller's own thread
                caller.future.cancel()
                raise
        else:
            self._tokenise(caller)
        return caller.future

    def check_room(self, within_s: float | None = None, n: int = 1) -> None:
        """Refuse a caller if `submit` would refuse so many texts.

        Args:
            within_s: as in `submit`.
            n: number of texts; 1 if they are not known yet.

        Raises:
            BusyError: as in `submit`.
        """
        self._admission.check(n, within_s)

    def _forget(self, n: int, batch_rows: int) -> None:
        with self._changed:
            self._admission.leave(n, batch_rows)

    def _tokenise(self, caller: Caller) -> None:
        self._untokenised.append(caller)  # not an argument: the traceback of an error would keep it
        self._tokeniser.submit(self._encode_next)

    def _encode_next(self) -> None:
        """Tokenise the next slice of the first caller."""
        self._encode(self._untokenised.popleft())

    def _encode(self, caller: Caller) -> None:
        """Tokenise the next slice of a caller."""
        if caller.future.done():
            return
        first, until = caller.n_encoded, caller.slice_end()
        started = time.perf_counter()
        try:
            encoded = caller.encode(first, until)
        except Exception as e:  # whatever it is, the caller gets it
            _fail(caller, e)
            del caller  # which has the error, which has this frame: a cycle would keep the engine
            return
        seconds = time.perf_counter() - started
        with self._changed:
            if not caller.waiting:
                self._queue.append(caller)
            caller.add(encoded, until, seconds)
            caller.tokenising = False
            self._tokenise_ahead(caller)
            starts = not self._busy
            self._busy = True
            self._changed.notify()
        if starts:
            self._engine.submit(self._run)

    def _tokenise_ahead(self, caller: Caller) -> None:
        """Have the next slice of a caller tokenised, once at most one waits."""
        if caller.n_encoded < caller.n and len(caller.waiting) <= caller.slice_texts and not caller.tokenising:
            caller.tokenising = True
            self._tokenise(caller)

    def _run(self) -> None:
        """Run batches until no row waits."""
        self._admission.begin()
        while taken := self._next_batch():
            self._run_batch(taken)

    def _run_batch(self, taken: _Taken) -> None:
        started = time.perf_counter()
        callers = list(dict.fromkeys(caller for caller, _, _ in taken))
        try:
            items = run_batch(taken[0][0].graph, [row for _, _, row in taken])
            seconds = time.perf_counter() - started
            self._record(taken, seconds)
        except Exception as e:  # as above
            while callers:
                _fail(callers.pop(), e)
            taken.clear()
            return
        for (caller, number, _), item in zip(taken, items, strict=True):
            caller.made[number] = item
        for caller in callers:
            caller.compute_s += seconds
            if caller.complete:
                _finish(caller)

    def _record(self, taken: _Taken, seconds: float) -> None:
        self._admission.batch_done(len(taken), seconds)
        if self._on_batch is not None:
            lengths = [len(row.tokens) for _, _, row in taken]
            padded = max(lengths) * len(lengths)
            self._on_batch(BatchRecord(len(taken), sum(lengths), padded, seconds, self._admission.waiting))

    def _next_batch(self) -> _Taken:
        """Take the rows of the next batch; none if no row waits."""
        with self._changed:
            for caller in self._served:  # behind those that came while they were served
                if caller.waiting:
                    self._queue.remove(caller)
                    self._queue.append(caller)
            self._served = []
            while True:
                taken, full = self._choose()
                if not taken:
                    self._busy = False
                    return taken
                since_s = time.perf_counter() - taken[0][0].submitted
                if full or since_s >= self._max_delay_s:
                    break
                self._changed.wait(self._max_delay_s - since_s)
            self._take(taken)
            return taken

    def _choose(self) -> tuple[_Taken, bool]:
        """Choose the rows of a batch: the first one, and others that add little padding; and whether no more fit."""
        self._drop_late()
        while self._queue and self._queue[0].future.done():
            self._queue.popleft().waiting.clear()
        if not self._queue:
            return [], False
        graph = self._queue[0].graph
        budget = self._max_batch_tokens or graph.batch_tokens
        candidates = list(itertools.islice(self._rows_for(graph), _CANDIDATES))
        longest = len(candidates[0][2].tokens)
        candidates.sort(key=lambda taken: abs(len(taken[2].tokens) - longest))
        given = [caller.within_s for caller, _, _ in candidates if caller.within_s is not None]
        most = self._admission.most_rows(graph.batch_rows, min(given, default=None))
        taken = candidates[:1]
        for candidate in candidates[1:]:
            length, n = len(candidate[2].tokens), len(taken)
            padded = max(longest, length) * (n + 1)
            if n == most or padded > budget:
                break
            if padded - longest * n - length <= PADDING_TOKENS:
                taken.append(candidate)
                longest = max(longest, length)
        return taken, len(taken) == most or longest * (len(taken) + 1) > budget

    def _drop_late(self) -> None:
        """Fail the callers whose time is over; if others wait, also those for which a batch would end too late."""
        at = self._admission.late_after()
        for caller in list(self._queue):  # a callback of a future may submit
            if caller.within_s is not None and caller.submitted + caller.within_s < at:
                _fail(caller, DeadlineError.after(caller.within_s))

    def _rows_for(self, graph: Graph) -> Iterator[tuple[Caller, int, EncodedRow]]:
        for caller in self._queue:
            if caller.graph is graph and not caller.future.done():
                for number, row in caller.waiting.items():
                    yield caller, number, row

    def _take(self, taken: _Taken) -> None:
        """Remove rows from the queue, and callers without further rows."""
        for caller, number, _ in taken:
            del caller.waiting[number]
        self._served = list(dict.fromkeys(caller for caller, _, _ in taken))
        for caller in self._served:
            if not caller.waiting:
                self._queue.remove(caller)
            self._tokenise_ahead(caller)


def _finish(caller: Caller) -> None:
    """Give the caller its answer, unless it has gone."""
    try:
        answer = caller.answer()
    except Exception as e:  # of a `join`: the caller's own fault, and the engine thread goes on
        _fail(caller, e)
        return
    with suppress(InvalidStateError):
        caller.future.set_result(answer)


def _fail(caller: Caller, error: Exception) -> None:
    """Give the caller an error, unless it has gone or got another one at this moment from the other thread."""
    with suppress(InvalidStateError):
        caller.future.set_exception(error)
