"""Encodings -> logits, batch by batch; knows lengths and padding, nothing of labels."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.buckets import MAX_BATCH_ROWS
from ptexport.runtime.graph import Graph
from ptexport.runtime.tokens import TextEncoder


def batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Group row numbers, longest first so that the first batch needs the most memory.

    Args:
        lengths: tokens of each row.
        most_tokens: of a batch of more rows than one, padding counted.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == MAX_BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score(graph: Graph, batch: Sequence[Encoding]) -> NDArray[np.float32]:
    """Run a batch; float32 [rows, …]."""
    return graph.run(TextEncoder.pad(batch))


def logits_of(graph: Graph, encodings: Sequence[Encoding], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Score encodings, in order; float32 [n, *shape], which is that of one row's."""
    logits = np.empty((len(encodings), *shape), dtype=np.float32)
    for rows in batches([len(encoding) for encoding in encodings], graph.batch_tokens):
        logits[rows] = score(graph, [encodings[row] for row in rows])
    return logits
