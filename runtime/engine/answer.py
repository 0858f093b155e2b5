"""What a batcher gives its callers, and says of its batches."""

from dataclasses import dataclass
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch.

    Attributes:
        rows: rows in it.
        tokens: their tokens.
        padded_tokens: tokens with padding.
        compute_s: seconds from its start to its predictions.
        waiting: texts that were submitted and are not answered.
    """

    rows: int
    tokens: int
    padded_tokens: int
    compute_s: float
    waiting: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went.

    Attributes:
        tokenise_s: seconds of tokenising its texts.
        queue_s: all other seconds, in queues.
        compute_s: seconds of the batches that had its rows.
    """

    tokenise_s: float
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Item]):
    """What a caller gets.

    Attributes:
        items: one per text, in order.
        tokens: tokens of its rows, without padding.
        timing: where the time went.
    """

    items: list[_Item]
    tokens: int
    timing: Timing
