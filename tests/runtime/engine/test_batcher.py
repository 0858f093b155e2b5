"""Which rows share a batch, in which order, and when it starts."""

import time

import numpy as np
import pytest
from recording_graph import RecordingGraph, Texts, ask, flat, hold, settled, tokenised

from ptexport.runtime.engine import batcher as module
from ptexport.runtime.engine.answer import BatchRecord
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.caller import SLICE_TEXTS
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS


@pytest.fixture
def graph() -> RecordingGraph:
    return RecordingGraph()


def test_what_comes_while_a_batch_runs_forms_the_next_one(graph: RecordingGraph) -> None:
    batcher = Batcher()
    held = hold(batcher, graph)
    others = [ask(batcher, graph, [3], first) for first in range(1, 6)]
    tokenised(batcher)
    assert batcher.waiting == 6
    graph.free.set()
    assert [other.result(30).items for other in others] == [[first] for first in range(1, 6)]
    assert held.result(30).items == [9999]
    assert graph.batches == [[9999], [1, 2, 3, 4, 5]]
    settled(batcher)
    assert batcher.waiting == 0


@pytest.mark.parametrize(("padding", "batches"), [(16, [[1, 2, 4, 5, 6], [3], [7]]), (1000, [[1, 2, 4, 5, 6, 3, 7]])])
def test_rows_of_similar_length_join_the_oldest(
    padding: int, batches: list[list[int]], graph: RecordingGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row joins unless it adds more padding than a batch of its own costs; the control allows any padding."""
    monkeypatch.setattr(module, "PADDING_TOKENS", padding)
    batcher = Batcher()
    hold(batcher, graph)
    lengths = [10, 10, 30, 11, 12, 5, 50]
    futures = [ask(batcher, graph, [length], first) for first, length in enumerate(lengths, 1)]
    tokenised(batcher)
    graph.free.set()
    assert [future.result(30).items for future in futures] == [[first] for first in range(1, 8)]
    assert graph.batches[1:] == batches


@pytest.mark.parametrize(
    ("of_graph", "of_batcher", "rows"),
    [(64, None, 6), (64, 30, 3), (64, 1, 1), (1, None, 1), (100_000, None, MAX_BATCH_ROWS), (1, 100_000, 32)],
)
def test_a_batch_has_so_many_tokens(of_graph: int, of_batcher: int | None, rows: int) -> None:
    graph, batcher = RecordingGraph(of_graph), Batcher(max_batch_tokens=of_batcher)
    answer = ask(batcher, graph, [10] * 64).result(30)
    assert answer.items == list(range(1, 65))
    assert {len(batch) for batch in graph.batches[:-1]} == {rows}
    assert flat(graph.batches) == answer.items, "in order"


def test_padding_counts_as_tokens() -> None:
    graph, batcher = RecordingGraph(60), Batcher()
    hold(batcher, graph)
    future = ask(batcher, graph, [14, 18, 16, 15])
    tokenised(batcher)
    graph.free.set()
    future.result(30)
    assert graph.batches[1:] == [[1, 4, 3], [2]], "4 x 18 tokens are too many"


def test_an_idle_engine_waits_for_more_only_as_long_as_it_may(graph: RecordingGraph) -> None:
    batcher = Batcher(max_delay_s=0.3)
    started = time.perf_counter()
    first = ask(batcher, graph, [3], 1)
    time.sleep(0.1)
    second = ask(batcher, graph, [3], 2)
    assert (first.result(30).items, second.result(30).items) == ([1], [2])
    assert 0.3 <= time.perf_counter() - started < 1
    assert graph.batches == [[1, 2]]
    eager = Batcher()
    ask(eager, graph, [3], 3).result(30)
    ask(eager, graph, [3], 4).result(30)
    assert graph.batches[1:] == [[3], [4]], "the control waits for nothing"


def test_a_full_batch_waits_for_nothing() -> None:
    graph, batcher = RecordingGraph(20), Batcher(max_delay_s=20)
    started = time.perf_counter()
    first = ask(batcher, graph, [10], 1)
    time.sleep(0.05)
    second = ask(batcher, graph, [10], 2)
    assert (first.result(30).items, second.result(30).items) == ([1], [2])
    assert time.perf_counter() - started < 5


def test_what_has_waited_while_a_batch_ran_does_not_wait_again(graph: RecordingGraph) -> None:
    batcher = Batcher(max_delay_s=0.2)
    hold(batcher, graph)
    future = ask(batcher, graph, [3])
    time.sleep(0.3)
    started = time.perf_counter()
    graph.free.set()
    future.result(30)
    assert time.perf_counter() - started < 0.15


def test_callers_take_turns(graph: RecordingGraph) -> None:
    batcher = Batcher(max_batch_tokens=1)
    hold(batcher, graph)
    futures = [ask(batcher, graph, [3] * 4, first) for first in (10, 20, 30)]
    tokenised(batcher)
    graph.free.set()
    for future in futures:
        future.result(30)
    assert flat(graph.batches[1:]) == [10, 20, 30, 11, 21, 31, 12, 22, 32, 13, 23, 33]


@pytest.mark.parametrize("length", [3, 40])
def test_a_few_texts_wait_for_one_batch_of_many(length: int, graph: RecordingGraph) -> None:
    batcher = Batcher()
    graph.free.clear()
    many = ask(batcher, graph, [3] * 5 * SLICE_TEXTS, 1000)
    assert graph.began.acquire(timeout=30)
    few = ask(batcher, graph, [length], 1)
    tokenised(batcher)
    graph.free.set()
    assert few.result(30).items == [1]
    assert graph.batches[1][0] == 1
    assert len(graph.batches[1]) == (1 if length == 40 else MAX_BATCH_ROWS)
    assert many.result(30).items == list(range(1000, 1000 + 5 * SLICE_TEXTS))


def test_a_device_with_larger_batches_gets_them_whole() -> None:
    graph, batcher = RecordingGraph(100_000, batch_rows=256), Batcher()
    many = ask(batcher, graph, [3] * 1024)
    assert many.result(30).items == list(range(1, 1025))
    assert max(len(batch) for batch in graph.batches) == 256


def test_rows_of_two_engines_share_no_batch_and_both_get_on(graph: RecordingGraph) -> None:
    batcher, other = Batcher(), RecordingGraph()
    order: list[RecordingGraph] = []
    for one in (graph, other):
        run = one.run
        one.run = lambda ids, one=one, run=run: order.append(one) or run(ids)  # type: ignore[assignment,misc,func-returns-value]
    held = hold(batcher, graph)
    first = ask(batcher, graph, [3] * 40, 1)
    second = ask(batcher, other, [3] * 40, 1001)
    tokenised(batcher)
    graph.free.set()
    assert first.result(30).items == list(range(1, 41))
    assert second.result(30).items == list(range(1001, 1041))
    held.result(30)
    assert flat(graph.batches[1:]) == first.result().items
    assert flat(other.batches) == second.result().items
    assert order[1:] == [graph, other] * 2


def test_one_hundred_thousand_texts_are_tokenised_little_ahead(graph: RecordingGraph) -> None:
    """Of a large request only a few encoded rows are in memory at a time."""
    n, ahead, texts = 100_000, 0, Texts(range(1, 100_001))
    texts.lengths = np.ones(n, dtype=int).tolist()
    run = graph.run

    def measured(ids: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal ahead
        ahead = max(ahead, texts.encoded[-1][1] - sum(map(len, graph.batches)))
        graph.batches[:] = [[0] * sum(map(len, graph.batches))]  # keep the record itself small
        return run(ids)

    graph.run = measured  # type: ignore[method-assign]
    answer = texts.submit(Batcher(), graph).result(60)
    assert answer.items == texts.items
    assert 0 < ahead <= 2 * SLICE_TEXTS + MAX_BATCH_ROWS, "two slices, and those that run"
    assert answer.tokens == n


def test_what_is_told_of_a_batch(graph: RecordingGraph) -> None:
    records: list[BatchRecord] = []
    batcher = Batcher(on_batch=records.append)
    hold(batcher, graph)
    graph.seconds = 0.05
    future = ask(batcher, graph, [10, 12, 11])
    tokenised(batcher)
    graph.free.set()
    future.result(30)
    record = records[1]
    assert (record.rows, record.tokens, record.padded_tokens, record.waiting) == (3, 33, 36, 3)
    assert 0.05 <= record.compute_s < 1


def test_where_the_time_of_a_request_went(graph: RecordingGraph) -> None:
    batcher = Batcher()
    held = hold(batcher, graph)
    graph.seconds = 0.05
    texts = Texts([3] * 2 * MAX_BATCH_ROWS)
    encode = texts.encode

    def slowly(first: int, until: int) -> object:
        time.sleep(0.05)
        return encode(first, until)

    texts.encode = slowly  # type: ignore[method-assign,assignment]
    started = time.perf_counter()
    future = texts.submit(batcher, graph)
    time.sleep(0.15)
    graph.free.set()
    answer = future.result(30)
    took = time.perf_counter() - started
    timing = answer.timing
    assert 0.05 <= timing.tokenise_s < 0.1
    assert 0.1 <= timing.compute_s < 0.2, "two batches"
    assert timing.queue_s > 0.09
    assert timing.tokenise_s + timing.queue_s + timing.compute_s == pytest.approx(took, abs=0.02)
    assert answer.tokens == 3 * 2 * MAX_BATCH_ROWS
    assert held.result(30).timing.tokenise_s < 0.05


def test_slices_of_large_texts_are_short(graph: RecordingGraph) -> None:
    """So that a caller with one text does not wait for the tokenizer while it takes a second for 64 large ones."""
    texts = Texts([3] * 10)
    texts.submit(Batcher(), graph, size_of=lambda number: 60_000 if number < 6 else 10).result(30)
    assert texts.encoded == [(0, 2), (2, 4), (4, 6), (6, 10)]
