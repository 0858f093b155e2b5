"""What a parity report says, and parity.json, which holds it; knows rows by number, never a text.

The manifest keeps `summarize`'s few figures of it. Neither parity.json nor the page beside it is hashed: no reader of a
bundle needs them.
"""

import msgspec
import numpy as np

from ptexport.runtime.bundle.measured import Comparison, Parity

REPORT_FORMAT = 1


class Flip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row whose label differs.

    Attributes:
        row: its number, from 0.
        expected: the model's label.
        got: the graph's.
        margin: the model's difference between its two largest logits; one near 0 was as good as undecided.
    """

    row: int
    expected: str
    got: str
    margin: float


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logits of all rows, batched in one way, against the model's.

    Attributes:
        max_abs_diff: largest difference of a logit.
        mean_abs_diff: mean difference of a logit.
        flips: rows whose label differs.
    """

    max_abs_diff: float
    mean_abs_diff: float
    flips: list[Flip]


class RowDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row against the model, the largest of all ways it was batched.

    Attributes:
        row: its number, from 0.
        tokens: ids it has in `input_ids`.
        margin: the model's difference between its two largest logits.
        max_abs_diff: largest difference of a logit. A label can differ only where this is at least half the margin.
    """

    row: int
    tokens: int
    margin: float
    max_abs_diff: float


class Neighbours(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The graph against itself: rows among others in one batch, and the same rows alone.

    Attributes:
        rows: different rows compared, each among all the others.
        neighbours: rows beside each.
        tokens: ids of the longest, to which the others were padded.
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
    """A made-up text of one length against the model.

    Attributes:
        tokens: ids it has in `input_ids`.
        truncated: whether the text was longer than the bundle takes.
        margin: the model's difference between its two largest logits.
        max_abs_diff: largest difference of a logit, alone; of the shortest and the longest also padded, either side.
        flips: whether its label differs.
    """

    tokens: int
    truncated: bool
    margin: float
    max_abs_diff: float
    flips: bool


class VariantReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph against the model.

    Attributes:
        precision: of its weights.
        alone: each row by itself.
        padded_right: rows of mixed lengths together, padding after the text.
        padded_left: the same, padding before the text.
        rows: the worst first, at most `exporters.parity.MOST_LISTED`.
        neighbours: whether an answer depends on what else is in the batch.
        lengths: from one token of text to more than the bundle takes.
    """

    precision: str
    alone: Difference
    padded_right: Difference
    padded_left: Difference
    rows: list[RowDifference]
    neighbours: Neighbours
    lengths: list[LengthDifference]


class ParityReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """parity.json, format 1.

    Attributes:
        format: version of this layout.
        bundle: its name.
        backbone: the language model's name.
        rows: rows compared: the run's check rows, or those of `export --rows`, and after them `always`.
        always: of those, the ones that every export adds: nothing, other scripts, what a text may try to spell.
        tolerance: largest difference of a logit that passes.
        max_abs_logit: the model's largest logit, to read differences by.
        variants: graphs compared.
        versions: of everything that made them.
    """

    format: int = REPORT_FORMAT
    bundle: str
    backbone: str
    rows: int
    always: int
    tolerance: float
    max_abs_logit: float
    variants: list[VariantReport]
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """Encode for `parity.json`."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def summarize(report: VariantReport, *, rows: int, tolerance: float) -> Parity:
    """Say for the manifest what came out.

    Args:
        report: of the graph in the bundle.
        rows: rows compared.
        tolerance: largest difference of a logit that passes.
    """
    return Parity(
        rows=rows,
        tolerance=tolerance,
        alone=_comparison(report.alone),
        padded_right=_comparison(report.padded_right),
        padded_left=_comparison(report.padded_left),
        among_neighbours=report.neighbours.max_abs_diff,
        all_lengths=float(np.max([point.max_abs_diff for point in report.lengths])),  # nan if any is
    )


def _comparison(difference: Difference) -> Comparison:
    return Comparison(
        max_abs_diff=difference.max_abs_diff,
        mean_abs_diff=difference.mean_abs_diff,
        flips=[flip.row for flip in difference.flips],
    )
