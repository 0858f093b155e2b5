"""What a manifest says was measured where a bundle was made: parity, golden rows, precision and times."""

from typing import Annotated

import msgspec


class PrecisionEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a lower precision than fp32 came to, on real rows.

    Attributes:
        products: products with weights, counted by how they are computed; empty where all nodes are in half.
        kept_fp32: names of weights whose products are in fp32.
        costs: mean difference of a logit with one role of products lowered alone, such as
            `base.layers.*.mlp.down_proj.weight`, the largest first.
        rows: measured on; rows without a label are right if answered as in fp32.
        accuracy_fp32: share of them that the fp32 graph answers right.
        accuracy: that this one does; None: it was not run.
    """

    products: dict[str, int]
    kept_fp32: list[str]
    costs: dict[str, float]
    rows: int
    accuracy_fp32: float
    accuracy: float | None


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a graph takes for one batch.

    Attributes:
        batch: rows.
        tokens: of each row, those folded not counted.
        median_ms: of several runs, in turn with the other candidates'.
    """

    batch: int
    tokens: int
    median_ms: float


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph that `--tune` timed.

    Attributes:
        opset: ONNX operator set.
        same_labels: whether it labels the checked rows as the first candidate does; one that does not is not taken.
        timings: one per size of batch.
    """

    opset: int
    same_labels: bool
    timings: list[Timing]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logits of the graph against those of the untouched model, one row at a time and unpadded there.

    Attributes:
        max_abs_diff: largest difference of a logit.
        mean_abs_diff: mean difference of a logit.
        flips: numbers of the rows whose label differs, from 0.
    """

    max_abs_diff: float
    mean_abs_diff: float
    flips: list[int]


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proof that the graph answers as the model does.

    Attributes:
        rows: rows compared; their text is not kept.
        tolerance: largest `max_abs_diff` that passes; in lower precisions twice the largest seen, of golden rows too.
        alone: each row by itself.
        padded_right: rows of mixed lengths together, padding after the text.
        padded_left: the same, padding before the text.
        among_neighbours: largest difference of a logit between rows among 64 others and the same rows alone, both the
            graph's; None: not measured, as in a bundle of many tasks.
        all_lengths: largest difference of a logit of texts from one token to more than the bundle takes; None likewise.
    """

    rows: int
    tolerance: float
    alone: Comparison
    padded_right: Comparison
    padded_left: Comparison
    among_neighbours: float | None = None
    all_lengths: float | None = None


class GoldenRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Built-in texts, never a user's, and what the untouched model answers.

    Attributes:
        texts: as many as the template takes.
        logits: by label; where answers are open, the largest few.
    """

    texts: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]
    logits: Annotated[dict[str, float], msgspec.Meta(min_length=1)]


Golden = Annotated[list[GoldenRow], msgspec.Meta(min_length=1)]
