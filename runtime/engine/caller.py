"""The texts of one caller while a batcher computes them."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ptexport.runtime.engine.answer import Answer, Timing
from ptexport.runtime.engine.batching import Encoded, EncodedRow
from ptexport.runtime.ort.graph import Graph

SLICE_TEXTS = 64
"""Texts of one caller that are tokenised at a time, or as many as a batch has rows."""
SLICE_CHARACTERS = 100_000
"""Characters after which no further text is: they take 0.1 s, which other callers wait."""


class Caller:
    """Texts of one caller, while they are computed. Not thread-safe: the batcher's lock guards it.

    Args:
        graph: runs the rows.
        n: number of texts.
        encode: encodes the texts from one number up to another.
        size_of: gives the characters of a text, by its number.
        within_s: seconds after which the result is of no use; None: any time.
    """

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
        """Add the rows of texts up to number `until`, which were tokenised in some seconds."""
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
        """Whether all texts are computed."""
        return self.n_encoded == self.n and len(self.made) == self.n_rows

    def answer(self) -> Answer[Any]:
        """Return the items of all texts, in order."""
        items: list[Any] = []
        made = (self.made[number] for number in range(self.n_rows))
        for n_rows, join in self.joins:
            items += join(list(itertools.islice(made, n_rows)))
        queued = time.perf_counter() - self.submitted - self.tokenise_s - self.compute_s
        return Answer(items, self.tokens, Timing(self.tokenise_s, max(queued, 0.0), self.compute_s))
