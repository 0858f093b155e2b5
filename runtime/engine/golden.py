"""Golden rows -> whether this machine computes what the untouched model did; knows logits, nothing of sessions.

They are built-in city names, in every manifest, so they are there to be run wherever a bundle is opened.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.measured import GoldenRow, Parity
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import BundleError
from ptexport.runtime.ort.providers import CPU, Provider

_ELSEWHERE = 0.05
"""Of a logit: what another processor than a CPU may round, on which parity was measured. Not run on a GPU yet."""
_NEVER_RUN = 0.5
"""Of a logit: what a bundle in bf16 may, which no CPU ran; its numbers have three digits."""


def golden_texts(rows: Sequence[GoldenRow]) -> list[Text]:
    """Give their texts as an engine takes them."""
    return [row.texts[0] if len(row.texts) == 1 else (row.texts[0], row.texts[1]) for row in rows]


def check_golden(
    rows: Sequence[GoldenRow], labels: Sequence[str], logits: NDArray[np.float32], tolerance: float, where: str
) -> float:
    """Compare what a graph answers to golden rows with what the untouched model did.

    Args:
        rows: of the manifest.
        labels: in the order of the logits.
        logits: float32 [rows, labels].
        tolerance: largest difference of a logit.
        where: what the error is about.

    Returns:
        The largest difference of a logit.

    Raises:
        BundleError: it is larger, or a row is of other labels.
    """
    for row in rows:
        if not set(row.logits) <= set(labels):
            raise BundleError(f"{where}: has golden rows of labels {sorted(row.logits)}, not its own; export again")
    columns = {label: number for number, label in enumerate(labels)}
    worst = max(
        float(np.abs(got[[columns[label] for label in row.logits]] - np.array(list(row.logits.values()))).max())
        for row, got in zip(rows, logits, strict=True)
    )
    if not worst <= tolerance:
        raise BundleError(
            f"{where}: a logit of its golden rows differs by {worst:.2g}, need at most {tolerance:.2g}; this machine "
            "computes otherwise, use provider cpu, or export on a machine like it"
        )
    return worst


def tolerance_of(parity: Parity | None, provider: Provider) -> float:
    """Choose how far golden rows may be from the untouched model's logits."""
    if parity is None:
        return _NEVER_RUN
    return parity.tolerance if provider.name == CPU else max(parity.tolerance, _ELSEWHERE)
