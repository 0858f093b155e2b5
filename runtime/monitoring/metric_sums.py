"""What is summed over requests and batches for the metrics."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from copy import copy

from ptexport.runtime.engine.answer import BatchRecord
from ptexport.runtime.monitoring.records import RequestRecord

DURATIONS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = tuple(2.0**n for n in range(10))
TOKENS = tuple(2.0**n for n in range(3, 18))

ERRORS = {"REJECTED": "overloaded", "CANCELED": "dropped", "BACKEND": "inference", "OTHER": "validation"}
"""Triton's reasons of a failure -> text-embeddings-inference's."""


class Histogram:
    """Counts of values by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> "Histogram":
        """Return a copy that does not change."""
        new = Histogram(self.bounds)
        new.counts, new.sum = self.counts.copy(), self.sum
        return new


class ModelSums:
    """What is summed for one version of a model."""

    def __init__(self) -> None:
        self.pending = 0
        self.removed = False
        self.codes: Counter[tuple[str, int]] = Counter()
        self.count = [0, 0]
        self.success = [0, 0]
        self.failure = dict.fromkeys(ERRORS, 0)
        self.all_texts = self.texts = self.tokens = 0
        self.total = Histogram(DURATIONS_S)
        self.queue = Histogram(DURATIONS_S)
        self.tokenise = Histogram(DURATIONS_S)
        self.compute = Histogram(DURATIONS_S)

    def add(self, record: RequestRecord) -> None:
        """Count a request."""
        method = record.texts != 1
        self.codes[record.protocol, record.code] += 1
        self.count[method] += 1
        self.all_texts += record.texts
        if record.reason is not None:
            self.failure[record.reason] += 1
            return
        self.success[method] += 1
        self.texts += record.texts
        self.tokens += record.tokens
        self.total.add(record.total_s)
        if record.timing is not None:
            self.queue.add(record.timing.queue_s)
            self.tokenise.add(record.timing.tokenise_s)
            self.compute.add(record.timing.compute_s)

    def copy(self) -> "ModelSums":
        """Return a copy that does not change."""
        new = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (Histogram, dict, list)):
                setattr(new, name, value.copy())
        return new


class BatchSums:
    """What is summed over all batches."""

    def __init__(self) -> None:
        self.batches = self.padding = 0
        self.rows = Histogram(ROWS)
        self.tokens = Histogram(TOKENS)
        self.compute = Histogram(DURATIONS_S)

    def add(self, record: BatchRecord) -> None:
        """Count a batch."""
        self.batches += 1
        self.padding += record.padded_tokens - record.tokens
        self.rows.add(record.rows)
        self.tokens.add(record.padded_tokens)
        self.compute.add(record.compute_s)

    def copy(self) -> "BatchSums":
        """Return a copy that does not change."""
        new = copy(self)
        new.rows, new.tokens, new.compute = self.rows.copy(), self.tokens.copy(), self.compute.copy()
        return new
