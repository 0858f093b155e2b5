"""A baked graph against untouched Transformers: every row one at a time, unpadded, its embeddings joined by a loop.

The oracle shares nothing with what it checks but ids: it calls the model as loaded, full vocabulary and all.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from ptexport.runtime.bundle import MODEL, TOKENIZER
from ptexport.runtime.engine import OPEN_TOP_K
from ptexport.runtime.errors import ExportError
from ptexport.runtime.graph import Graph
from ptexport.runtime.manifest import Comparison, GoldenRow, Parity
from ptexport.runtime.rows import Row
from ptexport.runtime.tokens import Text, TextEncoder
from ptexport.toolkit.backbone import Backbone
from ptexport.toolkit.data import pairs
from ptexport.toolkit.run import Run
from ptexport.toolkit.template import Template
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

TOLERANCE = 1e-3
"""Largest difference of a logit that fp32 may show."""

_BATCH_ROWS = 16
_ALWAYS = ("", "Владивосток, 東京, القاهرة", "[MASK] <mask> <|im_end|> [P 0]")
"""Rows that are always checked too: nothing, other scripts, and what a text may try to spell."""

_GOLDEN = ("Nairobi", "Buenos Aires", "Reykjavík", "東京")
"""Texts of the rows that every bundle carries."""

Report = Callable[[int, int], None]
"""Told how many of how many rows are done."""


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
    texts = texts_to_check(run, rows)
    return compare_graph(run, expected_logits(run, backbone, texts, report), folder, texts)


def compare_graph(run: Run, expected: NDArray[np.float32], folder: Path, texts: Sequence[Text]) -> Parity:
    """Compare a baked graph with what the oracle said; no model is needed any more.

    Args:
        run: the task.
        expected: the oracle's logits, float32 [texts, labels].
        folder: holds the graph and its tokenizer.
        texts: those that the oracle was asked.
    """
    graph = Graph.open(folder / MODEL)
    encoder = TextEncoder.from_json((folder / TOKENIZER).read_text(encoding="utf-8"), fields=_fields(run))
    encodings = encoder.encode(texts)

    def answers(batches: Iterator[list[int]], side: Literal["left", "right"]) -> NDArray[np.float32]:
        logits = np.empty_like(expected)
        for batch in batches:
            ids = encoder.pad([encodings[i] for i in batch], side=side)
            logits[batch] = graph.run(ids)
        return logits

    return Parity(
        rows=len(texts),
        tolerance=TOLERANCE / run.temperature,  # which logits are divided by
        alone=compare(answers(([i] for i in range(len(texts))), "right"), expected),
        padded_right=compare(answers(mixed_batches(len(texts)), "right"), expected),
        padded_left=compare(answers(mixed_batches(len(texts)), "left"), expected),
    )


def texts_to_check(run: Run, rows: Sequence[Row]) -> list[Text]:
    """Add to rows what is always checked."""
    always = _ALWAYS if run.config.compile(run.tokenizer_json).n_fixed else _ALWAYS[1:]  # nothing cannot be read
    read = [row.texts for row in pairs(rows, run.config.labels)]
    return read + [text if len(_fields(run)) == 1 else (text, text) for text in always]


def expected_logits(run: Run, backbone: Backbone, texts: Sequence[Text], report: Report) -> NDArray[np.float32]:
    """Ask the oracle, float32 [texts, labels]."""
    oracle = Oracle(run, backbone)
    expected = np.empty((len(texts), len(run.config.labels)), dtype=np.float32)
    for i, text in enumerate(texts):
        expected[i] = oracle.logits(text)
        report(i + 1, len(texts))
    return expected


def golden_rows(run: Run, backbone: Backbone) -> list[GoldenRow]:
    """Ask the oracle for the rows that a bundle carries, to be run wherever it is opened."""
    oracle = Oracle(run, backbone)
    rows = []
    for city, other in zip(_GOLDEN, _GOLDEN[1:] + _GOLDEN[:1], strict=True):
        texts = [city] if len(_fields(run)) == 1 else [city, other]
        logits = oracle.logits(city if len(texts) == 1 else (city, other))
        best = np.argsort(-logits)[: OPEN_TOP_K if run.config.open_answers else None]
        rows.append(GoldenRow(texts=texts, logits={run.config.labels[i]: float(logits[i]) for i in sorted(best)}))
    return rows


def _fields(run: Run) -> Sequence[str]:
    return Template.parse(run.config.template).fields


def fail_on_difference(parity: Parity) -> None:
    """Refuse a graph that does not answer as the model does.

    Raises:
        ExportError: a label differs, or a logit by more than the tolerance.
    """
    for name in ("alone", "padded_right", "padded_left"):
        result: Comparison = getattr(parity, name)
        if result.flips or not result.max_abs_diff <= parity.tolerance:
            raise ExportError(
                f"parity ({name.replace('_', ' ')}): {len(result.flips)} of {parity.rows} labels differ (rows "
                f"{result.flips[:10]}), largest difference {result.max_abs_diff:.2g}, need none and at most "
                f"{parity.tolerance:g}; no bundle was written, please report the model"
            )


def compare(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> Comparison:
    """Compare logits, float32 [rows, labels]."""
    difference = np.abs(logits - expected)
    flips = np.flatnonzero(logits.argmax(1) != expected.argmax(1))
    return Comparison(
        max_abs_diff=float(difference.max()), mean_abs_diff=float(difference.mean()), flips=flips.tolist()
    )


class Oracle:
    """Untouched Transformers on one text at a time.

    Args:
        run: the task; its prompt rows and, for a linear head, label rows are used as they are.
        backbone: as loaded, on the CPU.
    """

    def __init__(self, run: Run, backbone: Backbone) -> None:
        self._run = run
        self._model = backbone.model
        self._facts = backbone.facts
        self._template = Template.parse(run.config.template)
        compiled = run.config.compile(run.tokenizer_json)
        self._encoder = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields)
        self._words = WordTokenizer(run.tokenizer_json)
        self._word_ids = [] if run.config.label_words is None else self._find_words()

    @torch.no_grad()
    def logits(self, text: Text) -> NDArray[np.float32]:
        """Score one text, float32 [labels]."""
        (encoding,) = self._encoder.encode([text])
        extra: dict[str, Any] = {"token_type_ids": torch.tensor([encoding.type_ids])} if self._facts.token_types else {}
        if self._run.config.n_prefix:
            states = torch.from_numpy(self._run.baked.leading_states)
            extra["past_key_values"] = DynamicCache([(layer[0], layer[1]) for layer in states])
        if self._run.config.n_rows:
            embeddings = torch.stack([self._embedding(id_) for id_ in encoding.ids])
            output = self._model(inputs_embeds=embeddings[None], **extra)
        else:
            output = self._model(input_ids=torch.tensor([[self._own_id(id_) for id_ in encoding.ids]]), **extra)
        if self._run.config.label_words is None:
            baked = self._run.baked
            pooled = self._run.config.read == "pooled"
            state = output.pooler_output[0] if pooled else self._read(output.last_hidden_state[0], encoding.ids)
            logits: NDArray[np.float32] = baked.label_rows @ state.numpy() + baked.label_bias
            return logits
        scores = self._read(output.logits[0], encoding.ids).tolist()
        means = [np.mean([scores[i] for i in ids]) for ids in self._word_ids]
        metrics = self._run.metrics
        prior = (metrics and metrics.log_prior) or [0.0] * len(means)
        return np.array([(m - p) / self._run.temperature for m, p in zip(means, prior, strict=True)], dtype=np.float32)

    def _embedding(self, id_: int) -> Tensor:
        table: Tensor = self._model.get_input_embeddings().weight
        if id_ < self._facts.vocab:
            return table[id_]
        row = id_ - self._facts.vocab
        if row == self._run.config.n_rows:
            return table[self._own_id(id_)]
        return torch.from_numpy(self._run.baked.prompt_rows[row].copy())

    def _own_id(self, id_: int) -> int:
        """The backbone's own token: [MASK] for the mask slot."""
        return id_ if id_ < self._facts.vocab else self._words.id(self._facts.tokens["mask"])

    def _read(self, states: Tensor, ids: list[int]) -> Tensor:
        read = self._run.config.read
        if read == "mean":
            return states.mean(0)
        mask_slot = self._facts.vocab + self._run.config.n_rows
        return states[{"last": -1, "first": 0}.get(read, ids.index(mask_slot) if read == "mask" else 0)]

    def _find_words(self) -> list[list[int]]:
        config = self._run.config
        verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words or ())))
        unknown = self._facts.tokens.get("unk")
        return verbalizer.word_ids(self._words, spaced=self._template.answer_spaced, unknown=unknown)


def mixed_batches(n: int) -> Iterator[list[int]]:
    """Batches in random order, so that short and long rows meet."""
    order = list(range(n))
    random.Random(0).shuffle(order)
    return (order[start : start + _BATCH_ROWS] for start in range(0, n, _BATCH_ROWS))
