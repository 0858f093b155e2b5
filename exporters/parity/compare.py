"""A baked graph + expected logits -> how far they differ: alone, padded, among neighbours, at many lengths, together.

`reference.py` computes the expected logits; `report.py` holds the result.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.reference import Reference
from ptexport.exporters.parity.report import (
    Difference,
    Flip,
    LengthDifference,
    Neighbours,
    RowDifference,
    TaskReport,
)
from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.bundle.measured import Comparison, Parity
from ptexport.runtime.engine.batching import score
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.run.run import Run

TOLERANCE = 1e-3
"""Largest difference of a logit that passes in fp32, at temperature 1."""

MOST_LISTED = 1000
"""Rows that a report lists, those with the largest differences first: `--rows FILE` may have any number."""

N_NEIGHBOURS = 64
"""Rows beside each: more than any kernel's tile of rows, and than most batches over which scales are computed."""

MOST_NEIGHBOUR_TOKENS = 8192
"""Tokens of that batch, padding included. Longer rows are left out: 65 of 512 tokens need more memory than weights."""

_BATCH_ROWS = 16

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("right", "left")


def compare_graph(joint: JointTasks, references: Sequence[Reference], folder: Path) -> list[TaskReport]:
    """Compare a baked graph with the expected logits of its tasks.

    Batches mix the rows of all tasks. Whether the differences are small enough is for `fail_on_difference`.

    Args:
        joint: the tasks.
        references: expected logits, one per task.
        folder: holds the graph and its tokenizer.
    """
    graph, encoders = Graph.open(folder / MODEL), joint.encoders(folder)
    rows = _Rows.encode(joint, references, encoders)
    n = len(rows.encodings)
    alone = rows.by_task(_run(graph, rows.encodings, ([i] for i in range(n)), "right"))
    right, left = (rows.by_task(_run(graph, rows.encodings, mixed_batches(n), side)) for side in SIDES)
    fan_outs = _fan_outs(graph, joint, references, encoders)
    reports = []
    for t, ((name, run), reference) in enumerate(zip(joint.runs.items(), references, strict=True)):
        expected, labels, encodings = reference.logits, run.config.labels, rows.of_task(t)

        def logits_of(some: Sequence[Encoding], side: Side, t: int = t) -> NDArray[np.float32]:
            return score(graph, some, side)[:, t, : joint.n_labels[t]]

        reports.append(
            TaskReport(
                name=name,
                rows=len(reference.texts),
                always=reference.n_always,
                tolerance=tolerance_of(run),
                max_abs_logit=float(np.abs(expected).max()),
                alone=_difference(alone[t], expected, labels),
                padded_right=_difference(right[t], expected, labels),
                padded_left=_difference(left[t], expected, labels),
                fan_out=fan_outs[t],
                worst=_worst(encodings, [alone[t], right[t], left[t]], expected),
                neighbours=_neighbours(logits_of, encodings, alone[t]),
                lengths=_lengths(logits_of, encoders.of_task[t].encode(reference.lengths), reference.length_logits),
            )
        )
    return reports


def tolerance_of(run: Run) -> float:
    """Return the largest difference of a logit that passes in fp32; a temperature divides logits, and so this."""
    return TOLERANCE / run.temperature


def fail_on_difference(name: str, parity: Parity, fan_out: Comparison | None = None) -> None:
    """Refuse a graph if a label differs from the model's, or a logit by more than the tolerance.

    Args:
        name: of the task.
        parity: its comparison.
        fan_out: its comparison in rows that carry all tasks, if the bundle has such rows.

    Raises:
        ExportError: a label or a logit differs.
    """
    ways = {"alone": parity.alone, "padded right": parity.padded_right, "padded left": parity.padded_left}
    if fan_out is not None:
        ways["all tasks in one row"] = fan_out
    for way, result in ways.items():
        if result.flips or not result.max_abs_diff <= parity.tolerance:
            raise ExportError(
                f"task {name}: parity ({way}): {len(result.flips)} of {parity.rows} labels differ (rows "
                f"{result.flips[:10]}), largest difference {result.max_abs_diff:.2g}, need none and at most "
                f"{parity.tolerance:g}; no bundle was written, please report the model"
            )
    for way, largest in (("among neighbours", parity.among_neighbours), ("all lengths", parity.all_lengths)):
        if largest is not None and not largest <= parity.tolerance:
            raise ExportError(
                f"task {name}: parity ({way}): largest difference {largest:.2g}, need at most "
                f"{parity.tolerance:g}; no bundle was written, please report the model"
            )


def compare(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> Comparison:
    """Compare logits, float32 [rows, labels]."""
    difference = np.abs(logits - expected)
    flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1))
    return Comparison(
        max_abs_diff=float(difference.max()), mean_abs_diff=float(difference.mean()), flips=flips.tolist()
    )


def mixed_batches(n: int) -> Iterator[list[int]]:
    """Group row numbers into batches in random order, so that short and long rows meet."""
    order = list(range(n))
    random.Random(0).shuffle(order)
    return (order[start : start + _BATCH_ROWS] for start in range(0, n, _BATCH_ROWS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The encoded rows of all tasks, one task after the other.

    Attributes:
        encodings: of each row.
        tasks: number of each row's task, int64 [rows].
        n_labels: number of labels of each task.
    """

    encodings: list[Encoding]
    tasks: NDArray[np.int64]
    n_labels: list[int]

    @classmethod
    def encode(cls, joint: JointTasks, references: Sequence[Reference], encoders: TaskEncoders) -> "_Rows":
        own = [encoder.encode(ref.texts) for encoder, ref in zip(encoders.of_task, references, strict=True)]
        tasks = np.repeat(np.arange(len(own)), [len(some) for some in own])
        return cls(encodings=[encoding for some in own for encoding in some], tasks=tasks, n_labels=joint.n_labels)

    def of_task(self, t: int) -> list[Encoding]:
        return [self.encodings[i] for i in np.flatnonzero(self.tasks == t)]

    def by_task(self, logits: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Split logits, float32 [rows, tasks, most labels]: for each task those of its own rows and labels."""
        return [logits[self.tasks == t, t, :n] for t, n in enumerate(self.n_labels)]


def _run(
    graph: Graph, encodings: Sequence[Encoding], batches: Iterable[Sequence[int]], side: Side
) -> NDArray[np.float32]:
    """Run rows in batches; float32 [rows, tasks, most labels]."""
    by_row: dict[int, NDArray[np.float32]] = {}
    for batch in batches:
        by_row.update(zip(batch, score(graph, [encodings[i] for i in batch], side), strict=True))
    return np.stack([by_row[i] for i in range(len(encodings))])


def _fan_outs(
    graph: Graph, joint: JointTasks, references: Sequence[Reference], encoders: TaskEncoders
) -> list[Difference | None]:
    """Compare rows that carry the tokens of all tasks, in mixed batches padded on either side in turn.

    A text that is too long for one of the tasks has no such row.
    """
    if encoders.of_all is None:
        return [None] * len(references)
    every = [encoding for reference in references for encoding in encoders.of_all.encode(reference.texts)]
    fitting = np.array([not encoding.overflowing for encoding in every])
    encodings = [every[i] for i in np.flatnonzero(fitting)]
    batches = list(mixed_batches(len(encodings)))
    logits = np.empty((len(encodings), len(references), max(joint.n_labels)), dtype=np.float32)
    for side, some in zip(SIDES, (batches[::2], batches[1::2]), strict=True):
        for batch in some:
            logits[batch] = score(graph, [encodings[i] for i in batch], side)
    tasks = np.repeat(np.arange(len(references)), [len(reference.texts) for reference in references])
    return [
        _difference(
            logits[tasks[fitting] == t, t, : joint.n_labels[t]],
            reference.logits[fitting[tasks == t]],
            run.config.labels,
            np.flatnonzero(fitting[tasks == t]),
        )
        for t, (run, reference) in enumerate(zip(joint.runs.values(), references, strict=True))
    ]


def _difference(
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: Sequence[str],
    numbers: NDArray[np.int64] | None = None,
) -> Difference:
    """Compare logits; `numbers` are the rows' numbers, None: as they come."""
    compared = compare(logits, expected)
    margins = _margins(expected)
    flips = [
        Flip(
            row=i if numbers is None else int(numbers[i]),
            expected=labels[int(expected[i].argmax())],
            got=labels[int(logits[i].argmax())],
            margin=float(margins[i]),
        )
        for i in compared.flips
    ]
    return Difference(max_abs_diff=compared.max_abs_diff, mean_abs_diff=compared.mean_abs_diff, flips=flips)


def _margins(expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the difference between the two largest logits of each row, float32 [rows]."""
    if expected.shape[1] == 1:
        return np.full(len(expected), np.inf, dtype=np.float32)
    two = np.partition(expected, -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _worst(
    encodings: Sequence[Encoding], ways: Sequence[NDArray[np.float32]], expected: NDArray[np.float32]
) -> list[RowDifference]:
    largest = np.max([np.abs(logits - expected).max(1) for logits in ways], axis=0)
    margins = _margins(expected)
    return [
        RowDifference(row=i, tokens=len(encodings[i]), margin=float(margins[i]), max_abs_diff=float(largest[i]))
        for i in np.argsort(-largest, kind="stable")[:MOST_LISTED].tolist()
    ]


_LogitsOf = Callable[[Sequence[Encoding], Side], NDArray[np.float32]]


def _neighbours(logits_of: _LogitsOf, encodings: Sequence[Encoding], alone: NDArray[np.float32]) -> Neighbours:
    rows = choose_neighbours([len(encoding) for encoding in encodings])
    compared = compare(logits_of([encodings[i] for i in rows], "right"), alone[rows])
    return Neighbours(
        rows=len(set(rows)),
        neighbours=N_NEIGHBOURS,
        tokens=max(len(encodings[i]) for i in rows),
        max_abs_diff=compared.max_abs_diff,
        mean_abs_diff=compared.mean_abs_diff,
        flips=sorted({rows[i] for i in compared.flips}),
    )


def choose_neighbours(lengths: Sequence[int]) -> list[int]:
    """Choose the 65 rows of one batch, from the shortest to the longest that fit in it.

    Args:
        lengths: tokens of every row.

    Returns:
        Numbers of 65 rows; if there are fewer, some occur more than once.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    size = N_NEIGHBOURS + 1
    fit = [i for i in order if lengths[i] * size <= MOST_NEIGHBOUR_TOKENS] or order[:1]
    return [fit[round(at)] for at in np.linspace(0, len(fit) - 1, size).tolist()]


def _lengths(
    logits_of: _LogitsOf, encodings: Sequence[Encoding], expected: NDArray[np.float32]
) -> list[LengthDifference]:
    alone = np.concatenate([logits_of([encoding], "right") for encoding in encodings])
    largest = np.abs(alone - expected).max(1)
    ends = [0, len(encodings) - 1]
    for side in SIDES:  # as much padding as there can be
        got = logits_of([encodings[i] for i in ends], side)
        largest[ends] = np.maximum(largest[ends], np.abs(got - expected[ends]).max(1))
    margins, flips = _margins(expected), alone.argmax(1) != expected.argmax(1)
    return [
        LengthDifference(
            tokens=len(encoding),
            truncated=bool(encoding.overflowing),
            margin=float(margins[i]),
            max_abs_diff=float(largest[i]),
            flips=bool(flips[i]),
        )
        for i, encoding in enumerate(encodings)
    ]
