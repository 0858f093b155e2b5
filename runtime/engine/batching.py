"""Encoded rows -> batches -> logits -> items, such as predictions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.engine.text_encoder import TextEncoder, Tokens
from ptexport.runtime.ort.graph import Graph

_Item = TypeVar("_Item")


class Decode(Protocol):
    """Turns the logits of rows into items. Equal ones decode rows together, so that they share numpy calls."""

    def __call__(self, logits: NDArray[np.float32], rows: Sequence[Tokens]) -> list[Any]:
        """Return an item per row; logits are float32 [rows, tasks, most labels of a task]."""
        ...

    def __hash__(self) -> int: ...


class EncodedRow(NamedTuple):
    """One row of a batch.

    Attributes:
        tokens: its ids.
        decode: what becomes of its logits.
    """

    tokens: Tokens
    decode: Decode


class Encoded(NamedTuple, Generic[_Item]):
    """Encoded texts.

    Attributes:
        rows: one or several per text.
        join: turns the items of the rows, in order, into one item per text.
    """

    rows: list[EncodedRow]
    join: Callable[[list[Any]], list[_Item]] = list


def batches(lengths: Sequence[int], *, most_rows: int, most_tokens: int) -> Iterator[list[int]]:
    """Group row numbers into batches, the longest rows first, so that the first batch needs the most memory.

    Args:
        lengths: number of tokens of each row.
        most_rows: most rows of a batch.
        most_tokens: most tokens of a batch of several rows, padding included; a single row may be longer.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == most_rows or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def batches_for(graph: Graph, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group row numbers into batches that suit the device of a graph; see `batches`."""
    return batches(lengths, most_rows=graph.batch_rows, most_tokens=graph.batch_tokens)


def score(graph: Graph, batch: Sequence[Tokens], side: Literal["left", "right"] = "right") -> NDArray[np.float32]:
    """Compute the logits of a batch, float32 [rows, tasks, most labels of a task]."""
    logits = graph.run(TextEncoder.pad(batch, side=side))
    return logits[:, None] if logits.ndim == 2 else logits


def logits_of(graph: Graph, rows: Sequence[Tokens]) -> list[NDArray[np.float32]]:
    """Compute the logits of rows, in order; each float32 [tasks, most labels of a task]."""
    logits: dict[int, NDArray[np.float32]] = {}
    for numbers in batches_for(graph, [len(row) for row in rows]):
        logits.update(zip(numbers, score(graph, [rows[number] for number in numbers]), strict=True))
    return [logits[number] for number in range(len(rows))]


def as_they_are(logits: NDArray[np.float32], rows: Sequence[Tokens]) -> list[NDArray[np.float32]]:
    """Return the logits of each row: a Decode."""
    return list(logits)


def run_batch(graph: Graph, rows: Sequence[EncodedRow]) -> list[Any]:
    """Run one batch, and return an item per row, in order."""
    logits = score(graph, [row.tokens for row in rows])
    items: dict[int, Any] = {}
    for decode in dict.fromkeys(row.decode for row in rows):
        own = [number for number, row in enumerate(rows) if row.decode == decode]
        items.update(zip(own, decode(logits[own], [rows[number].tokens for number in own]), strict=True))
    return [items[number] for number in range(len(rows))]


def run_all(graph: Graph, encoded: Encoded[_Item]) -> list[_Item]:
    """Run encoded texts batch by batch in this thread, and return an item per text, in order."""
    items: dict[int, Any] = {}
    for numbers in batches_for(graph, [len(row.tokens) for row in encoded.rows]):
        items.update(zip(numbers, run_batch(graph, [encoded.rows[number] for number in numbers]), strict=True))
    return encoded.join([items[number] for number in range(len(encoded.rows))])
