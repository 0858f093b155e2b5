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
from typing import Any, TypeVar

from ptexport.runtime.engine.answer import Answer, BatchRecord, Timing
from ptexport.runtime.engine.batching import Encoded, EncodedRow, run_batch
from ptexport.runtime.engine.forks import Process
from ptexport.runtime.errors import BusyError, DataError, DeadlineError
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS
from ptexport.runtime.ort.graph import Graph

SLICE_TEXTS = 64
"""Texts of one caller that are tokenised at a time, or as many as a batch has rows."""
SLICE_CHARACTERS = 100_000
"""Characters after which no further text is: they take 0.1 s, which other callers wait."""

SHORT_CHARACTERS = 1000
"""Characters that a caller tokenises itself while no text of another one waits: they take at most 1 ms."""

PADDING_TOKENS = 16
"""A row joins a batch unless this adds more padding: a batch of its own costs about as much. examples/batch_cost.py
measures 18 on MiniLM and 20 on SmolLM2, on a busy machine."""

_CANDIDATES = 512  # waiting rows that are looked at for one batch
_DECAY = 0.95  # of the past in the mean times, with each batch
_SHARE_OF_DEADLINE = 0.7
"""Texts are taken if their turn is expected within this share of their time: the expectation is a mean."""
_BATCH_SHARE_OF_DEADLINE = 1 / 3
"""A batch is expected to take at most this share of the shortest time of its rows: who comes meanwhile waits for it."""

_Item = TypeVar("_Item")


class _Request:
    """Texts of one caller, while they are computed."""

    def __init__(
        self,
        graph: Graph,
        n: int,
        encode: Callable[[int, int], Encoded[Any]],
        size_of: Callable[[int], int],
        within_s: float | None,
    ) -> None:
        self.graph = graph
        self.n = n
        self.encode = encode
        self.size_of = size_of
        self.slice_texts = max(SLICE_TEXTS, graph.batch_rows)
        self.future: Future[Answer[Any]] = Future()
        self.submitted = time.perf_counter()
        self.within_s = within_s
        self.n_encoded = 0
        self.tokenising = True  # whether a slice of it is in the tokenising thread's queue
        self.waiting: dict[int, EncodedRow] = {}  # rows that no batch has taken, by number
        self.joins: list[tuple[int, Callable[[list[Any]], list[Any]]]] = []  # rows of each slice, and its `join`
        self.made: dict[int, Any] = {}  # items of rows
        self.n_rows = self.tokens = 0
        self.tokenise_s = self.compute_s = 0.0

    def add(self, encoded: Encoded[Any], until: int, seconds: float) -> None:
        """Add the rows of texts up to number `until`."""
        self.waiting.update(zip(itertools.count(self.n_rows), encoded.rows, strict=False))
        self.joins.append((len(encoded.rows), encoded.join))
        self.n_rows += len(encoded.rows)
        self.tokens += sum(len(row.tokens) for row in encoded.rows)
        self.n_encoded = until
        self.tokenise_s += seconds

    def slice_end(self) -> int:
        """Return the number past the last text of the next slice."""
        end, size = self.n_encoded, 0
        while end < min(self.n_encoded + self.slice_texts, self.n) and size < SLICE_CHARACTERS:
            size += self.size_of(end)
            end += 1
        return end

    @property
    def complete(self) -> bool:
        return self.n_encoded == self.n and len(self.made) == self.n_rows

    def answer(self) -> Answer[Any]:
        items: list[Any] = []
        made = (self.made[number] for number in range(self.n_rows))
        for n_rows, join in self.joins:
            items += join(list(itertools.islice(made, n_rows)))
        queued = time.perf_counter() - self.submitted - self.tokenise_s - self.compute_s
        return Answer(items, self.tokens, Timing(self.tokenise_s, max(queued, 0.0), self.compute_s))


_Taken = list[tuple[_Request, int, EncodedRow]]
"""The rows of a batch, each with its request and its number there."""


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
        self.max_waiting = max_waiting
        self._max_batch_tokens = max_batch_tokens
        self._max_delay_s = max_delay_s
        self._on_batch = on_batch
        self._process = Process.current()
        self._changed = threading.Condition()
        self._untokenised: deque[_Request] = deque()  # one for each call of _encode_next that is to come
        self._queue: deque[_Request] = deque()  # requests with waiting rows
        self._served: list[_Request] = []  # those with rows in the last batch
        self._busy = False  # whether the engine thread forms or runs batches
        self._waiting = 0
        self._batch_rows = MAX_BATCH_ROWS  # most rows of a batch of any graph so far
        self._batch_ended = 0.0  # when the last batch did
        self._batch_s = 0.0  # mean time of a batch
        self._recent_s = self._recent_texts = 0.0  # times from batch to batch while texts wait, and their texts
        self._before = 0  # texts that are computed before those of a new caller, since callers take turns
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="ptexport-tokenise")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="ptexport-engine")

    @property
    def waiting(self) -> int:
        """Texts that are submitted and not answered."""
        return self._waiting

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
        request = _Request(graph, n, encode, size_of, within_s)
        with self._changed:
            self._batch_rows = max(self._batch_rows, graph.batch_rows)
            if not always:
                self._admit(n, within_s)
            alone = not self._waiting
            self._waiting += n
            self._before += min(n, graph.batch_rows)
        request.future.add_done_callback(lambda _: self._forget(n, graph.batch_rows))  # without the request: no cycle
        if not n:
            request.future.set_result(request.answer())
        elif alone and n <= SLICE_TEXTS and sum(map(size_of, range(n))) <= SHORT_CHARACTERS:
            self._encode(request)
        else:
            self._tokenise(request)
        return request.future

    def check_room(self, within_s: float | None = None, n: int = 1) -> None:
        """Refuse a caller if `submit` would refuse so many texts.

        Args:
            within_s: as in `submit`.
            n: number of texts; 1 if they are not known yet.

        Raises:
            BusyError: as in `submit`.
        """
        self._admit(n, within_s)

    @property
    def _s_per_text(self) -> float:
        return self._recent_s / self._recent_texts if self._recent_texts else 0.0

    def _admit(self, n: int, within_s: float | None) -> None:
        s_per_text = self._s_per_text
        if self.max_waiting is not None and self._waiting and self._waiting + n > self.max_waiting:
            wait_s = (self._waiting + n - self.max_waiting) * s_per_text
            raise BusyError(
                f"queue: got {n} texts with {self._waiting} waiting, need at most {self.max_waiting} together; "
                "send them again later",
                retry_after_s=wait_s,
            )
        expected_s = (self._before if n <= self._batch_rows else self._waiting) * s_per_text
        if within_s is not None and expected_s > _SHARE_OF_DEADLINE * within_s:
            raise BusyError(
                f"queue: got {within_s:.3g} s for an answer, need about {expected_s:.1f} s; send them again later",
                retry_after_s=max(0.0, expected_s - _SHARE_OF_DEADLINE * within_s),
            )

    def _forget(self, n: int, batch_rows: int) -> None:
        with self._changed:
            self._waiting -= n
            self._before -= min(n, batch_rows)

    def _tokenise(self, request: _Request) -> None:
        self._untokenised.append(request)  # not an argument: the traceback of an error would keep it
        self._tokeniser.submit(self._encode_next)

    def _encode_next(self) -> None:
        """Tokenise the next slice of the first request."""
        self._encode(self._untokenised.popleft())

    def _encode(self, request: _Request) -> None:
        """Tokenise the next slice of a request."""
        if request.future.done():
            return
        first, until = request.n_encoded, request.slice_end()
        started = time.perf_counter()
        try:
            encoded = request.encode(first, until)
        except Exception as e:  # whatever it is, the caller gets it
            _fail(request, e)
            del request  # which has the error, which has this frame: a cycle would keep the engine
            return
        seconds = time.perf_counter() - started
        with self._changed:
            if not request.waiting:
                self._queue.append(request)
            request.add(encoded, until, seconds)
            request.tokenising = False
            self._tokenise_ahead(request)
            starts = not self._busy
            self._busy = True
            self._changed.notify()
        if starts:
            self._engine.submit(self._run)

    def _tokenise_ahead(self, request: _Request) -> None:
        """Have the next slice of a request tokenised, once at most one waits."""
        if request.n_encoded < request.n and len(request.waiting) <= request.slice_texts and not request.tokenising:
            request.tokenising = True
            self._tokenise(request)

    def _run(self) -> None:
        """Run batches until no row waits."""
        self._batch_ended = time.perf_counter()
        while taken := self._next_batch():
            self._run_batch(taken)

    def _run_batch(self, taken: _Taken) -> None:
        started = time.perf_counter()
        requests = list(dict.fromkeys(request for request, _, _ in taken))
        try:
            items = run_batch(taken[0][0].graph, [row for _, _, row in taken])
            seconds = time.perf_counter() - started
            self._record(taken, seconds)
        except Exception as e:  # as above
            while requests:
                _fail(requests.pop(), e)
            taken.clear()
            return
        for (request, number, _), item in zip(taken, items, strict=True):
            request.made[number] = item
        for request in requests:
            request.compute_s += seconds
            if request.complete:
                _finish(request)

    def _record(self, taken: _Taken, seconds: float) -> None:
        now = time.perf_counter()
        self._recent_s = self._recent_s * _DECAY + now - self._batch_ended
        self._recent_texts = self._recent_texts * _DECAY + len(taken)
        self._batch_s = seconds if not self._batch_s else self._batch_s * _DECAY + seconds * (1 - _DECAY)
        self._batch_ended = now
        if self._on_batch is not None:
            lengths = [len(row.tokens) for _, _, row in taken]
            padded = max(lengths) * len(lengths)
            self._on_batch(BatchRecord(len(taken), sum(lengths), padded, seconds, self._waiting))

    def _next_batch(self) -> _Taken:
        """Take the rows of the next batch; none if no row waits."""
        with self._changed:
            for request in self._served:  # behind those that came while they were served
                if request.waiting:
                    self._queue.remove(request)
                    self._queue.append(request)
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
        most = self._most_rows(graph, candidates)
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

    def _most_rows(self, graph: Graph, candidates: _Taken) -> int:
        """Return the most rows of a batch, so that it leaves time for the batch after it."""
        given = [request.within_s for request, _, _ in candidates if request.within_s is not None]
        if not given or not self._recent_texts:
            return graph.batch_rows
        return max(1, min(graph.batch_rows, int(min(given) * _BATCH_SHARE_OF_DEADLINE / self._s_per_text)))

    def _drop_late(self) -> None:
        """Fail the requests whose time is over; if others wait, also those for which a batch would end too late."""
        at = time.perf_counter() + (self._batch_s if self._waiting > self._batch_rows else 0.0)
        for request in self._queue:
            if request.within_s is not None and request.submitted + request.within_s < at:
                _fail(request, DeadlineError.after(request.within_s))

    def _rows_for(self, graph: Graph) -> Iterator[tuple[_Request, int, EncodedRow]]:
        for request in self._queue:
            if request.graph is graph and not request.future.done():
                for number, row in request.waiting.items():
                    yield request, number, row

    def _take(self, taken: _Taken) -> None:
        """Remove rows from the queue, and requests without further rows."""
        for request, number, _ in taken:
            del request.waiting[number]
        self._served = list(dict.fromkeys(request for request, _, _ in taken))
        for request in self._served:
            if not request.waiting:
                self._queue.remove(request)
            self._tokenise_ahead(request)


def _finish(request: _Request) -> None:
    """Give the caller its answer, unless it has gone."""
    try:
        answer = request.answer()
    except Exception as e:  # of a `join`: the caller's own fault, and the engine thread goes on
        _fail(request, e)
        return
    with suppress(InvalidStateError):
        request.future.set_result(answer)


def _fail(request: _Request, error: Exception) -> None:
    """Give the caller an error, unless it has gone or got another one at this moment from the other thread."""
    with suppress(InvalidStateError):
        request.future.set_exception(error)
