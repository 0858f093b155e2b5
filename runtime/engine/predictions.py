"""Logits -> predictions; knows softmax and labels' names, nothing of texts or graphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the most probable label's name; None if the bundle gives none so unsure (`manifest.abstain_below`).
        truncated: whether the text was longer than the bundle takes, and its end was not read.
        probabilities: every label's probability, in the bundle's order; they sum to 1. Of those asked for, the most
            probable first, where not all are.
    """

    label: str | None
    probabilities: dict[str, float]
    truncated: bool = False

    @property
    def surest(self) -> str:
        """The most probable label's name, sure enough or not."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


def predictions(
    logits: NDArray[np.float32],
    labels: Sequence[str],
    abstain_below: float | None,
    truncated: Sequence[bool],
    *,
    top_k: int | None = None,
) -> list[Prediction]:
    """Turn logits, float32 [rows, labels], into answers with the probabilities of all labels or the first few."""
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    least = abstain_below or 0.0
    answers = []
    for row, best, cut in zip(probabilities, logits.argmax(axis=1).tolist(), truncated, strict=True):
        indices = range(len(labels)) if top_k is None else _largest(row, top_k)
        answers.append(
            Prediction(
                label=labels[best] if row[best] >= least else None,
                probabilities={labels[i]: float(row[i]) for i in indices},
                truncated=cut,
            )
        )
    return answers


def _largest(row: NDArray[np.float32], k: int) -> Sequence[int]:
    """Find the numbers of the k largest, largest first."""
    first = np.argpartition(-row, min(k, len(row)) - 1)[:k]
    numbers: list[int] = first[np.argsort(-row[first], kind="stable")].tolist()
    return numbers
