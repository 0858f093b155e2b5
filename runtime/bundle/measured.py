"""Measurements in a manifest: parity, golden rows, cost of a lower precision, latency."""

from typing import Annotated

import msgspec


class PrecisionEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cost of a precision lower than fp32, measured on real rows.

    Attributes:
        products: number of matrix products with weights, by the way they are computed; empty in fp16 and bf16, where
            all nodes have the lower precision.
        kept_fp32: names of weights that are multiplied in fp32.
        costs: mean absolute difference of a logit if the products of one role alone are lowered, such as
            `base.layers.*.mlp.down_proj.weight`; the largest first.
        rows: number of rows; the reference for a row without a label is the prediction in fp32.
        accuracy_fp32: share of rows that the fp32 graph predicts correctly.
        accuracy: share of rows that this graph predicts correctly; None: it was not run.
    """

    products: dict[str, int]
    kept_fp32: list[str]
    costs: dict[str, float]
    rows: int
    accuracy_fp32: float
    accuracy: float | None


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Latency of a graph for one shape of batch.

    Attributes:
        batch: number of rows.
        tokens: tokens of each row, without folded ones.
        median_ms: median latency of several runs, in turn with the other candidates.
    """

    batch: int
    tokens: int
    median_ms: float


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph that `--tune` timed.

    Attributes:
        opset: ONNX operator set.
        same_labels: whether it predicts the same labels as the first candidate; otherwise it is not chosen.
        timings: latency by shape of batch.
    """

    opset: int
    same_labels: bool
    timings: list[Timing]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Differences between the logits of the graph and of the original model, which gets one unpadded row at a time.

    Attributes:
        max_abs_diff: largest absolute difference of a logit.
        mean_abs_diff: mean absolute difference of a logit.
        flips: numbers, from 0, of the rows with different predicted labels.
    """

    max_abs_diff: float
    mean_abs_diff: float
    flips: list[int]


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Comparison of the graph with the original model in Transformers.

    Attributes:
        rows: number of rows compared; their texts are not stored.
        tolerance: largest `max_abs_diff` that passes; in a lower precision, twice the largest difference seen, golden
            rows included.
        alone: each row as a batch of its own.
        padded_right: rows of mixed lengths in one batch, with padding after the text.
        padded_left: the same, with padding before the text.
        among_neighbours: largest absolute difference of a logit, in the graph, between a row in a batch with 64 others
            and the same row alone; None: not measured, in a multi-task bundle of format 1.
        all_lengths: largest absolute difference of a logit over texts from one token to more than the bundle takes;
            None: likewise.
    """

    rows: int
    tolerance: float
    alone: Comparison
    padded_right: Comparison
    padded_left: Comparison
    among_neighbours: float | None = None
    all_lengths: float | None = None


class GoldenRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A built-in text or pair, never a user's, with the logits of the original model.

    Attributes:
        texts: as many texts as the template takes.
        logits: expected logits by label; for an open vocabulary, the largest few.
    """

    texts: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]
    logits: Annotated[dict[str, float], msgspec.Meta(min_length=1)]


Golden = Annotated[list[GoldenRow], msgspec.Meta(min_length=1)]
