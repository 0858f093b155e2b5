"""Logits -> predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction for one text.

    Attributes:
        label: name of the most probable label; None if its probability is below the task's `abstain_below`.
        probabilities: probability by label, in the order of the task's labels; they sum to 1. With `top_k`, the `top_k`
            most probable labels, the most probable first.
        truncated: whether the text was longer than the task takes, so that its end was not read.
        logits: logit of each label in `probabilities`; None: not asked for.
    """

    label: str | None
    probabilities: dict[str, float]
    truncated: bool = False
    logits: dict[str, float] | None = None

    @property
    def surest(self) -> str:
        """Name of the most probable label, also if `label` is None."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


def predictions(
    logits: NDArray[np.float32],
    labels: Sequence[str],
    abstain_below: float | None,
    truncated: Sequence[bool],
    *,
    top_k: int | None = None,
    with_logits: bool = False,
) -> list[Prediction]:
    """Turn logits into predictions.

    Args:
        logits: float32 [rows, labels].
        labels: label names, in the order of the logits.
        abstain_below: probability below which a prediction has no label; None: each has one.
        truncated: whether each row was truncated.
        top_k: number of labels with probabilities, the most probable first; None: all, in order.
        with_logits: keep the logits too.
    """
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    least = abstain_below or 0.0
    made = []
    for row, given, best, cut in zip(probabilities, logits, logits.argmax(axis=1).tolist(), truncated, strict=True):
        indices = range(len(labels)) if top_k is None else _largest(row, top_k)
        made.append(
            Prediction(
                label=labels[best] if row[best] >= least else None,
                probabilities={labels[i]: float(row[i]) for i in indices},
                truncated=cut,
                logits={labels[i]: float(given[i]) for i in indices} if with_logits else None,
            )
        )
    return made


def _largest(row: NDArray[np.float32], k: int) -> Sequence[int]:
    """Return the indices of the k largest values, the largest first."""
    first = np.argpartition(-row, min(k, len(row)) - 1)[:k]
    numbers: list[int] = first[np.argsort(-row[first], kind="stable")].tolist()
    return numbers
