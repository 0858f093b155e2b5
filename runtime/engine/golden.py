"""Golden rows -> whether this machine computes the logits of the original model.

Golden rows are built-in city names. Every manifest has some with their expected logits, so that every `Engine.open` can
compare them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.bundle.measured import GoldenRow, Parity
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import Text, Tokens
from ptexport.runtime.errors import BundleError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.known_plugins import BF16_TOLERANCE
from ptexport.runtime.ort.providers import CPU, Provider


def golden_texts(rows: Sequence[GoldenRow]) -> list[Text]:
    """Return the texts of golden rows as an engine takes them."""
    return [row.texts[0] if len(row.texts) == 1 else (row.texts[0], row.texts[1]) for row in rows]


def check_golden(
    rows: Sequence[GoldenRow], labels: Sequence[str], logits: NDArray[np.float32], tolerance: float, where: str
) -> float:
    """Compare the logits of golden rows with the expected ones.

    Args:
        rows: golden rows of a task.
        labels: label names, in the order of the logits.
        logits: computed logits, float32 [rows, labels].
        tolerance: largest absolute difference of a logit that passes.
        where: name of the bundle, for messages.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        BundleError: the difference is above the tolerance, or not a number; or a row has unknown labels.
    """
    for row in rows:
        if not set(row.logits) <= set(labels):
            raise BundleError(
                f"{where}: got golden rows with labels {sorted(row.logits)}, need labels of the task; export again"
            )
    columns = {label: number for number, label in enumerate(labels)}
    worst = max(
        float(np.abs(got[[columns[label] for label in row.logits]] - np.array(list(row.logits.values()))).max())
        for row, got in zip(rows, logits, strict=True)
    )
    if not worst <= tolerance:
        raise BundleError(
            f"{where}: a logit of its golden rows differs by {worst:.2g}, need at most {tolerance:.2g}; "
            "export on a machine like this one, or use provider cpu where another was used"
        )
    return worst


def tolerance_of(parity: Parity | None, provider: Provider) -> float:
    """Choose the largest difference of a golden row's logit for a provider."""
    if parity is None:
        return BF16_TOLERANCE  # the exporting CPU could not run it
    return parity.tolerance if provider.name == CPU else max(parity.tolerance, provider.tolerance)


def check_golden_rows(
    bundle: Bundle, encoders: TaskEncoders, graph: Graph, run: Callable[[Sequence[Tokens]], list[NDArray[np.float32]]]
) -> float:
    """Run each task's golden rows; returns the largest difference of a logit.

    On other providers than the CPU's they run twice, in one batch and one by one: those have other kernels per shape.

    Raises:
        BundleError: a difference is larger than the task's tolerance.
    """
    worst = 0.0
    tasks = zip(bundle.manifest.tasks, bundle.labels, encoders.of_task, strict=True)
    for number, (task, labels, encoder) in enumerate(tasks):
        rows = encoder.encode(golden_texts(task.golden))
        logits = np.stack(run(rows))[:, number]
        tolerance = tolerance_of(task.parity, graph.provider)
        worst = max(worst, check_golden(task.golden, labels, logits, tolerance, str(bundle.path)))
        if graph.provider.name != CPU:
            alone = np.stack([run([row])[0] for row in rows])[:, number]
            _check_batching(logits, alone, len(labels), tolerance, f"{bundle.path} on {graph.provider.name}")
    return worst


def _check_batching(
    batch: NDArray[np.float32], alone: NDArray[np.float32], n_labels: int, tolerance: float, where: str
) -> None:
    """Check that rows have the logits in a batch that they have alone, float32 [rows, most labels of a task].

    Raises:
        BundleError: they have not.
    """
    worst = float(np.abs(batch[:, :n_labels] - alone[:, :n_labels]).max())
    if not worst <= tolerance:
        raise BundleError(
            f"{where}: a logit of its golden rows differs by {worst:.2g} between a batch and a row alone, need at most "
            f"{tolerance:.2g}; use provider cpu"
        )
