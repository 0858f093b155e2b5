"""Comparisons of a graph with its model <-> parity.json; names rows by number and holds no text of theirs.

The manifest holds a summary (`summarize`). `ptexport inspect --html` draws a page from the whole. The runtime does not
read parity.json, so it is not hashed.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from ptexport.runtime.bundle.folder import PARITY_JSON
from ptexport.runtime.bundle.manifest import Precision
from ptexport.runtime.bundle.measured import Comparison, Parity
from ptexport.runtime.errors import BundleError, reason

REPORT_FORMAT: Final = 2


class Flip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row with another label than the model's.

    Attributes:
        row: number of the row, from 0.
        expected: the model's label.
        got: the graph's label.
        margin: difference between the model's two largest logits; near 0 the model itself is undecided.
    """

    row: int
    expected: str
    got: str
    margin: float


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logits of all rows, batched in one way, compared with the model's.

    Attributes:
        max_abs_diff: largest difference of a logit.
        mean_abs_diff: mean difference of a logit.
        flips: rows whose label differs.
    """

    max_abs_diff: float
    mean_abs_diff: float
    flips: list[Flip]


class RowDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row compared with the model, over all ways in which it was batched.

    Attributes:
        row: number of the row, from 0.
        tokens: number of ids in `input_ids`.
        margin: difference between the model's two largest logits.
        max_abs_diff: largest difference of a logit; the label can differ only if this is at least half the margin.
    """

    row: int
    tokens: int
    margin: float
    max_abs_diff: float


class Neighbours(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows in one batch, compared with the same rows alone; both logits are the graph's.

    Attributes:
        rows: number of different rows.
        neighbours: number of other rows in the batch.
        tokens: number of ids of the longest row, to which the others are padded.
        max_abs_diff: largest difference of a logit.
        mean_abs_diff: mean difference of a logit.
        flips: numbers of the rows whose label depends on their neighbours.
    """

    rows: int
    neighbours: int
    tokens: int
    max_abs_diff: float
    mean_abs_diff: float
    flips: list[int]


class LengthDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generated text of one length, compared with the model.

    Attributes:
        tokens: number of ids in `input_ids`.
        truncated: whether the text is longer than the task takes.
        margin: difference between the model's two largest logits.
        max_abs_diff: largest difference of a logit, alone; for the shortest and the longest text also padded, on either
            side.
        flips: whether the label differs.
    """

    tokens: int
    truncated: bool
    margin: float
    max_abs_diff: float
    flips: bool


class TaskReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task compared with the model.

    Attributes:
        name: name of the task.
        rows: number of rows compared: the run's check rows, or those of `export --rows`, and `always` more.
        always: number of rows that every export adds: an empty text, other scripts, the spellings of special tokens.
        tolerance: largest difference of a logit that passes.
        max_abs_logit: the model's largest logit, for scale.
        alone: each row by itself.
        padded_right: rows of mixed lengths, and of all tasks, in one batch, padded on the right.
        padded_left: the same, padded on the left.
        fan_out: rows that carry the tokens of all tasks, for one forward pass; None if the bundle has no such rows.
        worst: rows with the largest differences first, at most `compare.MOST_LISTED`.
        neighbours: whether logits depend on the other rows of the batch.
        lengths: texts from one token to more than the task takes.
    """

    name: str
    rows: int
    always: int
    tolerance: float
    max_abs_logit: float
    alone: Difference
    padded_right: Difference
    padded_left: Difference
    fan_out: Difference | None
    worst: list[RowDifference]
    neighbours: Neighbours
    lengths: list[LengthDifference]


class ParityReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """parity.json, format 2.

    Attributes:
        format: version of this layout.
        bundle: name of the bundle.
        backbone: name of the language model.
        precision: what the graph computes in.
        tasks: in the order of the graph's output.
        versions: packages that made the bundle.
    """

    format: Literal[2] = REPORT_FORMAT
    bundle: str
    backbone: str
    precision: Precision
    tasks: list[TaskReport]
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """Encode for `parity.json`."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def read(cls, folder: Path) -> "ParityReport":
        """Read a bundle's `parity.json`.

        Raises:
            BundleError: the file is missing, of another format, or not what an export writes.
        """
        path = folder / PARITY_JSON
        try:
            data = path.read_bytes()
            got = msgspec.json.decode(data, type=_Format).format
        except FileNotFoundError as e:
            why = "need the comparison with Transformers; export again (bundles in bf16 and installed ones have none)"
            raise BundleError(f"{path}: missing, {why}") from e
        except (OSError, msgspec.DecodeError, RecursionError) as e:
            raise BundleError(f"{path}: cannot be read ({reason(e)[:200]}); export again") from e
        if got != REPORT_FORMAT:
            raise BundleError(f"{path}: got format {got}, need {REPORT_FORMAT}; export again with this version")
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as e:
            raise BundleError(f"{path}: not what an export writes ({reason(e)[:200]}); export again") from e


class _Format(msgspec.Struct):
    format: int


def summarize(report: TaskReport) -> Parity:
    """Summarize one task's comparison for the manifest."""
    return Parity(
        rows=report.rows,
        tolerance=report.tolerance,
        alone=comparison_of(report.alone),
        padded_right=comparison_of(report.padded_right),
        padded_left=comparison_of(report.padded_left),
        among_neighbours=report.neighbours.max_abs_diff,
        all_lengths=float(np.max([point.max_abs_diff for point in report.lengths])),  # nan if any is
    )


def comparison_of(difference: Difference) -> Comparison:
    """Summarize a difference for the manifest."""
    return Comparison(
        max_abs_diff=difference.max_abs_diff,
        mean_abs_diff=difference.mean_abs_diff,
        flips=[flip.row for flip in difference.flips],
    )
