"""Encodings -> logits, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS
from ptexport.runtime.ort.graph import Graph


def batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Group row numbers into batches, the longest rows first, so that the first batch needs the most memory.

    Args:
        lengths: number of tokens of each row.
        most_tokens: most tokens of a batch of several rows, padding included; a single row may be longer.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == MAX_BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score(graph: Graph, batch: Sequence[Encoding], side: Literal["left", "right"] = "right") -> NDArray[np.float32]:
    """Compute the logits of a batch, float32 [rows, tasks, most labels of a task]."""
    logits = graph.run(TextEncoder.pad(batch, side=side))
    return logits[:, None] if logits.ndim == 2 else logits


def logits_of(graph: Graph, encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
    """Compute the logits of encodings, in order; each float32 [tasks, most labels of a task]."""
    logits: dict[int, NDArray[np.float32]] = {}
    for rows in batches([len(encoding) for encoding in encodings], graph.batch_tokens):
        logits.update(zip(rows, score(graph, [encodings[row] for row in rows]), strict=True))
    return [logits[row] for row in range(len(encodings))]
