"""Callers of a batcher: they cancel, they are refused, their texts fail, and nobody else is the worse for it."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from recording_graph import RecordingGraph, Texts, ask, flat, hold, settled, tokenised

from ptexport.runtime.engine.batcher import SHORT_CHARACTERS, Batcher
from ptexport.runtime.engine.batching import Encoded, EncodedRow
from ptexport.runtime.engine.caller import SLICE_TEXTS
from ptexport.runtime.errors import BusyError, DataError, DeadlineError

TESTS = Path(__file__).parents[2]


@pytest.fixture
def graph() -> RecordingGraph:
    return RecordingGraph()


def test_no_texts_are_answered_at_once(graph: RecordingGraph) -> None:
    batcher = Batcher(max_waiting=1)
    hold(batcher, graph)
    answer = ask(batcher, graph, []).result(0)
    assert (answer.items, answer.tokens) == ([], 0)
    graph.free.set()


def test_cancelled_before_it_is_tokenised(graph: RecordingGraph) -> None:
    batcher, go = Batcher(), threading.Event()
    batcher._tokeniser.submit(go.wait)
    texts, other = Texts([3] * 5), Texts([3], 100)
    future, kept = texts.submit(batcher, graph), other.submit(batcher, graph)
    assert future.cancel()
    assert batcher.waiting == 1
    go.set()
    assert kept.result(30).items == [100]
    assert (texts.encoded, graph.batches) == ([], [[100]])


def test_cancelled_in_the_queue(graph: RecordingGraph) -> None:
    batcher = Batcher()
    hold(batcher, graph)
    futures = [ask(batcher, graph, [3] * 2, first) for first in (10, 20, 30, 40)]
    tokenised(batcher)
    assert futures[0].cancel()
    assert futures[2].cancel()
    graph.free.set()
    assert [futures[n].result(30).items for n in (1, 3)] == [[20, 21], [40, 41]]
    assert graph.batches[1:] == [[20, 21, 40, 41]]
    settled(batcher)
    assert (batcher.waiting, list(batcher._queue)) == (0, [])


def test_cancelled_during_a_batch(graph: RecordingGraph) -> None:
    """The batch ends, nothing more of it is computed or tokenised, and its neighbour is answered."""
    batcher = Batcher()
    hold(batcher, graph)
    many, neighbour = Texts([3] * 10 * SLICE_TEXTS, 1000), Texts([3], 1)
    cancelled = many.submit(batcher, graph)
    tokenised(batcher)
    kept = neighbour.submit(batcher, graph)
    tokenised(batcher)
    graph.seconds = 0.1
    graph.free.set()
    assert graph.began.acquire(timeout=30)
    assert cancelled.cancel()
    assert kept.result(30).items == [1]
    settled(batcher)
    assert len([row for row in flat(graph.batches) if row >= 1000]) <= 64
    assert len(many.encoded) <= 3
    assert batcher.waiting == 0
    with pytest.raises(CancelledError):
        cancelled.result(0)


@pytest.mark.parametrize("fails_at", [0, SLICE_TEXTS])
def test_an_error_of_tokenising_is_its_caller_s(fails_at: int, graph: RecordingGraph) -> None:
    batcher, bad = Batcher(), Texts([3] * 3 * SLICE_TEXTS, 1000)
    encode = bad.encode

    def failing(first: int, until: int) -> Encoded[int]:
        if first == fails_at:
            raise DataError(f"text {first}: no")
        return encode(first, until)

    bad.encode = failing  # type: ignore[method-assign]
    held = hold(batcher, graph)
    wrong, right = bad.submit(batcher, graph), ask(batcher, graph, [3] * 3)
    graph.free.set()
    with pytest.raises(DataError, match=f"text {fails_at}: no"):
        wrong.result(30)
    assert (right.result(30).items, held.result(30).items) == ([1, 2, 3], [9999])
    settled(batcher)
    assert (batcher.waiting, list(batcher._queue)) == (0, [])
    assert ask(batcher, graph, [3]).result(30).items == [1]


@pytest.mark.parametrize("what", ["graph", "decode", "on_batch"])
def test_an_error_of_a_batch_is_that_of_its_callers(what: str, graph: RecordingGraph) -> None:
    def failing(*_: Any) -> list[Any]:
        raise ValueError("no")

    broken: list[Exception] = []
    batcher = Batcher(on_batch=lambda _: broken and failing())
    hold(batcher, graph)
    one, two, long = ask(batcher, graph, [3] * 2, 1), ask(batcher, graph, [3], 10), ask(batcher, graph, [40], 20)
    if what == "decode":
        row = Texts([3]).encode(0, 1).rows[0]
        two = batcher.submit(graph, 1, lambda *_: Encoded([EncodedRow(row.tokens, failing)]))  # type: ignore[arg-type]
    tokenised(batcher)
    run = graph.run

    def once(ids: Any) -> Any:
        if len(ids["input_ids"]) > 1:  # the batch of the short ones
            graph.error = "no" if what == "graph" else None
            broken[:] = [ValueError()] if what == "on_batch" else []
        else:
            graph.error = None
            broken.clear()
        return run(ids)

    graph.run = once  # type: ignore[method-assign]
    graph.free.set()
    for future in (one, two):
        with pytest.raises(ValueError, match=r"^no$"):
            future.result(30)
    assert long.result(30).items == [20], "of another batch"
    settled(batcher)
    assert batcher.waiting == 0
    assert ask(batcher, graph, [3]).result(30).items == [1]


def test_two_errors_of_one_caller_at_once(graph: RecordingGraph) -> None:
    """The graph fails its first texts while the tokenizer fails the next: one of both is told, and no thread dies."""
    for _ in range(20):
        batcher, texts, together = Batcher(), Texts([3] * 2 * SLICE_TEXTS), threading.Barrier(2)
        encode = texts.encode

        def failing(first: int, until: int, encode: Callable[..., Any] = encode, at: Any = together) -> Encoded[int]:
            if first:
                at.wait(5)
                raise DataError("tokenizer")
            return encode(first, until)

        def run(ids: Any, at: Any = together) -> Any:
            at.wait(5)
            raise ValueError("graph")

        texts.encode, broken = failing, RecordingGraph()  # type: ignore[method-assign]
        broken.run = run  # type: ignore[method-assign]
        with pytest.raises(ValueError, match=r"^(graph|tokenizer)$"):
            texts.submit(batcher, broken).result(30)
        assert ask(batcher, graph, [3]).result(30).items == [1]
        assert batcher.waiting == 0


def test_a_queue_has_room_for_so_many_texts(graph: RecordingGraph) -> None:
    batcher = Batcher(max_waiting=10)
    large = ask(batcher, graph, [3] * 40)
    assert large.result(30).items == list(range(1, 41)), "alone it may be larger"
    hold(batcher, graph)
    ask(batcher, graph, [3] * 8)
    batcher.check_room()
    with pytest.raises(BusyError, match=r"^queue: got 2 texts with 9 waiting, need at most 10 together; send them"):
        ask(batcher, graph, [3] * 2)
    last = ask(batcher, graph, [3])
    with pytest.raises(BusyError, match="got 1 texts with 10 waiting") as caught:
        batcher.check_room()
    assert caught.value.retry_after_s == pytest.approx(batcher._admission.s_per_text)
    assert last.cancel()
    batcher.check_room()
    graph.free.set()
    settled(batcher)
    assert batcher.waiting == 0
    Batcher().check_room()


def test_a_deadline_that_cannot_be_met_is_refused_at_once(graph: RecordingGraph) -> None:
    batcher = Batcher()
    graph.seconds = 0.1
    assert ask(batcher, graph, [3], within_s=5).result(30).items == [1], "nothing is known yet"
    hold(batcher, graph)
    ask(batcher, graph, [3] * 9)
    with pytest.raises(BusyError, match=r"^queue: got 0.1 s for an answer, need about 1\.\d s; send them") as caught:
        ask(batcher, graph, [3], within_s=0.1)
    assert 0.5 < caught.value.retry_after_s < 2
    with pytest.raises(BusyError, match=r"^queue: got 0.1 s for an answer"):
        batcher.check_room(0.1)
    batcher.check_room(10)
    patient = ask(batcher, graph, [3], 50, within_s=10)
    graph.free.set()
    assert patient.result(30).items == [50]


def test_a_deadline_counts_turns_and_not_texts(graph: RecordingGraph) -> None:
    """A caller with one text waits for one batch of a caller with a thousand."""
    batcher = Batcher()
    graph.seconds = 0.1
    ask(batcher, graph, [3]).result(30)
    assert graph.began.acquire(timeout=30)
    hold(batcher, graph)
    many = ask(batcher, graph, [3] * 1000)
    few = ask(batcher, graph, [3], 50, within_s=10)
    with pytest.raises(BusyError):
        ask(batcher, graph, [3] * 33, within_s=10)
    assert many.cancel()
    graph.free.set()
    assert few.result(30).items == [50]


def test_what_would_be_too_late_is_not_computed(graph: RecordingGraph) -> None:
    """While others wait; alone it is tried."""
    batcher = Batcher()
    graph.seconds = 0.2
    assert ask(batcher, graph, [3], within_s=0.15).result(30).items == [1], "nobody waits for it"
    assert graph.began.acquire(timeout=30)
    hold(batcher, graph)
    late = ask(batcher, graph, [3] * 40, 100, within_s=0.5)
    time.sleep(0.6)
    patient = ask(batcher, graph, [3], 200, within_s=30)
    graph.free.set()
    with pytest.raises(DeadlineError, match=r"^timeout: got 500 ms for the answer"):
        late.result(30)
    assert patient.result(30).items == [200]
    assert not {*range(100, 140)} & {*flat(graph.batches)}


FORK = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from recording_graph import RecordingGraph, ask
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.errors import EngineError
batcher, graph = Batcher(), RecordingGraph()
assert ask(batcher, graph, [3]).result(10).items == [1]
child = os.fork()
if not child:
    signal.alarm(10)
    try:
        ask(batcher, graph, [3])
    except EngineError as e:
        assert str(e).startswith("batcher: was made before this process was forked"), e
        assert ask(Batcher(), graph, [3]).result(10).items == [1]
        os._exit(0)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert ask(batcher, graph, [3]).result(10).items == [1]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
def test_a_forked_process_needs_its_own(graph: RecordingGraph) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("how", ["answered", "cancelled", "tokenizer", "graph"])
def test_nothing_is_kept_of_an_engine_after_its_last_answer(how: str) -> None:
    """Nor is it left to the collector of cycles: a graph holds hundreds of megabytes."""
    batcher, graph = Batcher(), RecordingGraph()
    held = hold(batcher, graph)
    texts = Texts([3] * 100)
    if how == "tokenizer":
        texts.encode = lambda first, until: int("no")  # type: ignore[method-assign,assignment,return-value]
    future = texts.submit(batcher, graph)
    tokenised(batcher)
    if how == "cancelled":
        future.cancel()
    if how == "graph":
        graph.error = "no"
    graph.free.set()
    if how == "answered":
        future.result(30)
    settled(batcher)
    assert future.done()
    gone, texts_gone = weakref.ref(graph), weakref.ref(texts)
    del graph, texts, future, held
    assert gone() is None
    assert texts_gone() is None
    assert batcher.waiting == 0


@pytest.mark.parametrize(("characters", "is_here"), [(SHORT_CHARACTERS // 2, True), (SHORT_CHARACTERS, False)])
def test_a_few_short_texts_are_tokenised_by_their_caller(characters: int, is_here: bool, graph: RecordingGraph) -> None:
    texts, threads = Texts([3, 3]), []
    encode = texts.encode

    def noting(first: int, until: int) -> Encoded[int]:
        threads.append(threading.current_thread())
        return encode(first, until)

    texts.encode = noting  # type: ignore[method-assign]
    assert texts.submit(Batcher(), graph, size_of=lambda _: characters).result(30).items == [1, 2]
    assert [thread is threading.current_thread() for thread in threads] == [is_here]


@pytest.mark.parametrize(("within_s", "sizes"), [(1.2, [1, 20, 10]), (None, [1, 30])])
def test_a_batch_leaves_time_for_the_next(within_s: float | None, sizes: list[int], graph: RecordingGraph) -> None:
    """A row takes 20 ms, and a third of the time that each is given is 400 ms."""
    run = graph.run

    def slowly(ids: Any) -> Any:
        time.sleep(0.02 * len(ids["input_ids"]))
        return run(ids)

    graph.run = slowly  # type: ignore[method-assign]
    batcher = Batcher()
    ask(batcher, graph, [3] * 20).result(30)
    settled(batcher)
    assert graph.began.acquire(timeout=30)
    graph.batches.clear()
    hold(batcher, graph)
    futures = [ask(batcher, graph, [3], n, within_s=within_s, always=True) for n in range(30)]
    tokenised(batcher)
    graph.free.set()
    for future in futures:
        future.result(30)
    assert [len(batch) for batch in graph.batches] == pytest.approx(sizes, abs=2)
