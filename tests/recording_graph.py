"""A graph that runs nothing, records its batches and can be held; and callers of a batcher."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.engine.answer import Answer
from ptexport.runtime.engine.batcher import SHORT_CHARACTERS, Batcher
from ptexport.runtime.engine.batching import Encoded, EncodedRow
from ptexport.runtime.engine.text_encoder import TokenIds, Tokens
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS
from ptexport.runtime.ort.graph import Graph


class RecordingGraph:
    """Its logits of a row are the row's first id.

    Attributes:
        batches: first ids of the rows of each batch.
        free: batches wait until it is set.
        seconds: that a batch takes.
        error: message of the ValueError that a batch raises.
    """

    def __init__(self, batch_tokens: int = 1000, batch_rows: int = MAX_BATCH_ROWS) -> None:
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        self.batches: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.seconds = 0.0
        self.error: str | None = None

    def run(self, ids: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        first: NDArray[np.int64] = ids["input_ids"][:, :1]
        self.batches.append(first[:, 0].tolist())
        self.began.release()
        assert self.free.wait(30)
        time.sleep(self.seconds)
        if self.error is not None:
            raise ValueError(self.error)
        return first.astype(np.float32)


def decode(logits: NDArray[np.float32], rows: Sequence[Tokens]) -> list[Any]:
    """Each row's item is its first id."""
    return [int(value) for value in logits[:, 0, 0]]


class Texts:
    """Texts of one caller, too long for it to tokenise: row n has the id `first` + n, as many times as its length."""

    def __init__(self, lengths: Sequence[int], first: int = 1) -> None:
        self.lengths = lengths
        self.first = first
        self.items = list(range(first, first + len(lengths)))
        self.encoded: list[tuple[int, int]] = []

    def encode(self, first: int, until: int) -> Encoded[int]:
        self.encoded.append((first, until))
        return Encoded(
            [
                EncodedRow(TokenIds([self.first + n] * self.lengths[n], [0] * self.lengths[n]), decode)
                for n in range(first, until)
            ]
        )

    def submit(self, batcher: Batcher, graph: RecordingGraph, **more: Any) -> "Future[Answer[int]]":
        more = {"size_of": lambda _: SHORT_CHARACTERS + 1, **more}
        return batcher.submit(cast("Graph", graph), len(self.lengths), self.encode, **more)


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def ask(
    batcher: Batcher, graph: RecordingGraph, lengths: Sequence[int], first: int = 1, **more: Any
) -> "Future[Answer[int]]":
    """Submit texts of these lengths."""
    return Texts(lengths, first).submit(batcher, graph, **more)


def hold(batcher: Batcher, graph: RecordingGraph, first: int = 9999) -> "Future[Answer[int]]":
    """Have the engine thread run a batch of one row until `graph.free` is set."""
    graph.free.clear()
    future = ask(batcher, graph, [1], first)
    assert graph.began.acquire(timeout=30)
    return future


def tokenised(batcher: Batcher) -> None:
    """Wait until what was submitted so far is in the queue."""
    batcher._tokeniser.submit(lambda: None).result(30)


def settled(batcher: Batcher) -> None:
    """Wait until the batcher's threads have nothing to do."""
    for _ in range(1000):
        tokenised(batcher)
        with batcher._changed:
            if not batcher._busy:
                return
        time.sleep(0.005)
    raise AssertionError("still busy")
