"""Encodings -> logits, batch by batch; knows lengths and padding, nothing of labels."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.buckets import MAX_BATCH_ROWS, MAX_BATCH_TOKENS
from ptexport.runtime.graph import Graph
from ptexport.runtime.tokens import TextEncoder


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group row numbers, longest first so that the first batch needs the most memory, by rows and padded tokens."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == MAX_BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score(graph: Graph, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Run encodings through a graph as it is asked for them: the numbers of a batch's rows, and their logits."""
    for rows in batches([len(encoding) for encoding in encodings]):
        yield rows, graph.run(TextEncoder.pad([encodings[row] for row in rows]))


def logits_of(graph: Graph, encodings: Sequence[Encoding], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Score encodings, in order; float32 [n, *shape], which is that of one row's."""
    logits = np.empty((len(encodings), *shape), dtype=np.float32)
    for rows, part in score(graph, encodings):
        logits[rows] = part
    return logits
