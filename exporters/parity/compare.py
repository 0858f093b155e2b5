"""A baked graph against untouched Transformers: alone, padded, among neighbours, at every length.

`reference.py` computes the expected logits; `report.py` holds the result.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ptexport.exporters.parity.reference import Oracle, Report, expected_logits
from ptexport.exporters.parity.report import (
    Difference,
    Flip,
    LengthDifference,
    Neighbours,
    RowDifference,
    VariantReport,
    summarize,
)
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER
from ptexport.runtime.bundle.measured import Comparison, GoldenRow, Parity
from ptexport.runtime.engine.engine import OPEN_VOCABULARY_TOP_K
from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.rows import Row
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Template

TOLERANCE = 1e-3
"""Largest difference of a logit that fp32 may show."""

MOST_LISTED = 1000
"""Rows that a report lists, the worst first: a `--rows FILE` may have any number."""

N_NEIGHBOURS = 64
"""Rows beside each: more than any kernel's tile of rows, and what dynamic quantization takes a scale over."""

MOST_NEIGHBOUR_TOKENS = 8192
"""Of that batch, padding included. Longer rows stay out: 65 of 512 tokens would need more memory than the weights."""

N_LENGTHS = 7
"""Lengths from 1 token of text to the most, each some times the one before; the last takes as long as all others."""

_BATCH_ROWS = 16
_ALWAYS = ("", "Владивосток, 東京, القاهرة", "[MASK] <mask> <|im_end|> [P 0]")
"""Rows that are always checked too: nothing, other scripts, and what a text may try to spell."""

_GOLDEN = ("Nairobi", "Buenos Aires", "Reykjavík", "東京")
"""Texts of the rows that every bundle carries."""


def check_parity(run: Run, backbone: Backbone, folder: Path, rows: Sequence[Row], report: Report) -> Parity:
    """Compare a baked graph with the model it came from.

    Args:
        run: the task.
        backbone: as loaded, on the CPU.
        folder: holds the graph and its tokenizer.
        rows: texts to compare on.
        report: progress.

    Returns:
        The differences, which may be too large: see `fail_on_difference`.
    """
    texts, lengths = texts_to_check(run, rows), texts_of_lengths(run)
    expected = expected_logits(run, backbone, [*texts, *lengths], report)
    compared = compare_graph(run, expected, folder, texts, lengths)
    return summarize(compared, rows=len(texts), tolerance=tolerance_of(run))


def compare_graph(
    run: Run,
    expected: NDArray[np.float32],
    folder: Path,
    texts: Sequence[Text],
    lengths: Sequence[Text],
    *,
    precision: str = "fp32",
) -> VariantReport:
    """Compare a baked graph with what the oracle said; no model is needed any more.

    Args:
        run: the task.
        expected: the oracle's logits of `texts`, then of `lengths`, float32 [rows, labels].
        folder: holds the graph and its tokenizer.
        texts: see `texts_to_check`.
        lengths: see `texts_of_lengths`.
        precision: of the graph's weights.
    """
    graph = Graph.open(folder / MODEL)
    encoder = TextEncoder.from_json((folder / TOKENIZER).read_text(encoding="utf-8"), fields=fields_of(run))
    n, labels = len(texts), run.config.labels
    rows, probes = encoder.encode(texts), encoder.encode(lengths)
    wanted = expected[:n]
    alone = _answers(graph, rows, ([i] for i in range(n)))
    right = _answers(graph, rows, mixed_batches(n))
    left = _answers(graph, rows, mixed_batches(n), side="left")
    return VariantReport(
        precision=precision,
        alone=_difference(alone, wanted, labels),
        padded_right=_difference(right, wanted, labels),
        padded_left=_difference(left, wanted, labels),
        rows=_rows(rows, [alone, right, left], wanted),
        neighbours=_neighbours(graph, rows, alone),
        lengths=_lengths(graph, probes, expected[n:]),
    )


def texts_to_check(run: Run, rows: Sequence[Row]) -> list[Text]:
    """Add to rows what is always checked."""
    read = [row.texts for row in pairs(rows, run.config.labels)]
    return read + [text if len(fields_of(run)) == 1 else (text, text) for text in always_checked(run)]


def always_checked(run: Run) -> Sequence[str]:
    """Texts that are checked whatever the rows are."""
    return _ALWAYS if run.config.compile(run.tokenizer_json).n_fixed else _ALWAYS[1:]  # nothing cannot be read


def golden_rows(run: Run, backbone: Backbone) -> list[GoldenRow]:
    """Ask the oracle for the rows that a bundle carries, to be run wherever it is opened."""
    oracle = Oracle(run, backbone)
    rows = []
    for city, other in zip(_GOLDEN, _GOLDEN[1:] + _GOLDEN[:1], strict=True):
        texts = [city] if len(fields_of(run)) == 1 else [city, other]
        logits = oracle.logits(city if len(texts) == 1 else (city, other))
        best = np.argsort(-logits)[: OPEN_VOCABULARY_TOP_K if run.config.open_vocabulary else None]
        rows.append(GoldenRow(texts=texts, logits={run.config.labels[i]: float(logits[i]) for i in sorted(best)}))
    return rows


def texts_of_lengths(run: Run) -> list[Text]:
    """Make texts of the built-in cities' names, from one token to more than the run takes; a pair shares the tokens."""
    config, compiled = run.config, run.config.compile(run.tokenizer_json)
    room = max(config.max_length - config.n_prefix - compiled.n_fixed, 1)
    sizes = sorted({round(size) for size in np.geomspace(1, room, N_LENGTHS)})
    tokenizer = Tokenizer.from_str(run.tokenizer_json)
    tokenizer.no_truncation()
    names = ", ".join(row.text for row in load_cities()) + ", "  # some thousand tokens
    long = names * (1 + 2 * room // len(load_cities()))
    ends = [end for _, end in tokenizer.encode(long, add_special_tokens=False).offsets]

    def text(tokens: int) -> str:
        return long[: ends[tokens - 1]] if tokens else ""

    if len(fields_of(run)) == 1:
        return [text(size) for size in (*sizes, 2 * room)]
    return [*((text(size - size // 2), text(size // 2)) for size in sizes), (text(2 * room), text(room // 2))]


def fields_of(run: Run) -> Sequence[str]:
    """Say which texts a row brings."""
    return Template.parse(run.config.template).fields


def tolerance_of(run: Run) -> float:
    """Say how far a logit may be off, which a temperature divides."""
    return TOLERANCE / run.temperature


def fail_on_difference(parity: Parity) -> None:
    """Refuse a graph that does not answer as the model does.

    Raises:
        ExportError: a label differs, or a logit by more than the tolerance, its neighbours' doing or not.
    """
    for name in ("alone", "padded_right", "padded_left"):
        result: Comparison = getattr(parity, name)
        if result.flips or not result.max_abs_diff <= parity.tolerance:
            raise ExportError(
                f"parity ({name.replace('_', ' ')}): {len(result.flips)} of {parity.rows} labels differ (rows "
                f"{result.flips[:10]}), largest difference {result.max_abs_diff:.2g}, need none and at most "
                f"{parity.tolerance:g}; no bundle was written, please report the model"
            )
    for name in ("among_neighbours", "all_lengths"):
        largest: float | None = getattr(parity, name)
        if largest is not None and not largest <= parity.tolerance:
            raise ExportError(
                f"parity ({name.replace('_', ' ')}): largest difference {largest:.2g}, need at most "
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
    """Batches in random order, so that short and long rows meet."""
    order = list(range(n))
    random.Random(0).shuffle(order)
    return (order[start : start + _BATCH_ROWS] for start in range(0, n, _BATCH_ROWS))


def _answers(
    graph: Graph, encodings: Sequence[Encoding], batches: Iterable[list[int]], side: Literal["left", "right"] = "right"
) -> NDArray[np.float32]:
    """Ask the graph in batches; float32 [rows, labels]."""
    by_row: dict[int, NDArray[np.float32]] = {}
    for batch in batches:
        logits = graph.run(TextEncoder.pad([encodings[i] for i in batch], side=side))
        by_row.update(zip(batch, logits, strict=True))
    return np.stack([by_row[i] for i in range(len(encodings))])


def _difference(logits: NDArray[np.float32], expected: NDArray[np.float32], labels: Sequence[str]) -> Difference:
    compared = compare(logits, expected)
    margins = _margins(expected)
    flips = [
        Flip(
            row=row,
            expected=labels[int(expected[row].argmax())],
            got=labels[int(logits[row].argmax())],
            margin=float(margins[row]),
        )
        for row in compared.flips
    ]
    return Difference(max_abs_diff=compared.max_abs_diff, mean_abs_diff=compared.mean_abs_diff, flips=flips)


def _margins(expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """The difference between the two largest logits of each row, float32 [rows]."""
    if expected.shape[1] == 1:
        return np.full(len(expected), np.inf, dtype=np.float32)
    two = np.partition(expected, -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _rows(
    encodings: Sequence[Encoding], ways: Sequence[NDArray[np.float32]], expected: NDArray[np.float32]
) -> list[RowDifference]:
    worst = np.max([np.abs(logits - expected).max(1) for logits in ways], axis=0)
    margins = _margins(expected)
    return [
        RowDifference(row=row, tokens=len(encodings[row]), margin=float(margins[row]), max_abs_diff=float(worst[row]))
        for row in np.argsort(-worst, kind="stable")[:MOST_LISTED].tolist()
    ]


def _neighbours(graph: Graph, encodings: Sequence[Encoding], alone: NDArray[np.float32]) -> Neighbours:
    rows = choose_neighbours([len(encoding) for encoding in encodings])
    compared = compare(graph.run(TextEncoder.pad([encodings[i] for i in rows])), alone[rows])
    return Neighbours(
        rows=len(set(rows)),
        neighbours=N_NEIGHBOURS,
        tokens=max(len(encodings[i]) for i in rows),
        max_abs_diff=compared.max_abs_diff,
        mean_abs_diff=compared.mean_abs_diff,
        flips=sorted({rows[i] for i in compared.flips}),
    )


def choose_neighbours(lengths: Sequence[int]) -> list[int]:
    """Choose rows of one batch, each of which is among 64 others, from the shortest to the longest that fit in it.

    Args:
        lengths: tokens of every row.

    Returns:
        Numbers of 65 rows; where there are fewer, some stand there more than once.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    size = N_NEIGHBOURS + 1
    fit = [i for i in order if lengths[i] * size <= MOST_NEIGHBOUR_TOKENS] or order[:1]
    return [fit[round(at)] for at in np.linspace(0, len(fit) - 1, size).tolist()]


def _lengths(graph: Graph, encodings: Sequence[Encoding], expected: NDArray[np.float32]) -> list[LengthDifference]:
    alone = _answers(graph, encodings, ([i] for i in range(len(encodings))))
    worst = np.abs(alone - expected).max(1)
    ends = [0, len(encodings) - 1]
    for side in ("right", "left"):  # as much padding as there can be
        got = graph.run(TextEncoder.pad([encodings[i] for i in ends], side="left" if side == "left" else "right"))
        worst[ends] = np.maximum(worst[ends], np.abs(got - expected[ends]).max(1))
    margins, flips = _margins(expected), alone.argmax(1) != expected.argmax(1)
    return [
        LengthDifference(
            tokens=len(encoding),
            truncated=bool(encoding.overflowing),
            margin=float(margins[i]),
            max_abs_diff=float(worst[i]),
            flips=bool(flips[i]),
        )
        for i, encoding in enumerate(encodings)
    ]
