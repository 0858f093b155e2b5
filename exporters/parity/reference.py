"""Texts of a task -> the logits that untouched Transformers computes, without padding, in fp32.

The reference shares only token ids with the graph: it calls the model as loaded, and puts the prompt embeddings into
each row in a loop. Only rows of equal length are computed together.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding
from torch import Tensor
from transformers import DynamicCache

from ptexport.exporters.parity.texts import GOLDEN, always_checked, pair_of, texts_of_lengths, texts_to_check
from ptexport.runtime.bundle.measured import GoldenRow
from ptexport.runtime.engine.task import OPEN_VOCABULARY_TOP_K
from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

_BATCH_TOKENS = 512
"""Of rows computed together: more do not raise the throughput of a CPU, and the logits of a vocabulary need memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The expected logits of one task.

    Attributes:
        texts: the task's rows, then texts that every export adds.
        n_always: number of added texts, at the end of `texts`.
        logits: of `texts`, float32 [texts, labels].
        lengths: texts of many lengths, from one token to more than the task takes.
        length_logits: of `lengths`, float32 [lengths, labels].
        golden: rows for the manifest.
    """

    texts: list[Text]
    n_always: int
    logits: NDArray[np.float32]
    lengths: list[Text]
    length_logits: NDArray[np.float32]
    golden: list[GoldenRow]

    @classmethod
    def compute(cls, run: Run, backbone: Backbone, rows: Sequence[Row], progress: Progress) -> "Reference":
        """Compute the expected logits of rows, of texts of many lengths, and of the golden rows."""
        texts, lengths = texts_to_check(run, rows), texts_of_lengths(run)
        logits = expected_logits(run, backbone, [*texts, *lengths], progress)
        return cls(
            texts=texts,
            n_always=len(always_checked(run)),
            logits=logits[: len(texts)],
            lengths=lengths,
            length_logits=logits[len(texts) :],
            golden=golden_rows(run, backbone),
        )


def expected_logits(run: Run, backbone: Backbone, texts: Sequence[Text], progress: Progress) -> NDArray[np.float32]:
    """Compute the expected logits of texts, float32 [texts, labels]."""
    model = ReferenceModel(run, backbone)
    rows = model.encode(texts)
    expected = np.empty((len(rows), len(run.config.labels)), dtype=np.float32)
    done = 0
    for numbers in _of_equal_length([len(row) for row in rows]):
        expected[numbers] = model.logits([rows[i] for i in numbers])
        done += len(numbers)
        progress.rows(done, len(rows))
    return expected


def _of_equal_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group row numbers into batches of equal length, the longest first: the time that is left is never too short."""
    by_length: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        by_length.setdefault(length, []).append(number)
    for length, numbers in sorted(by_length.items(), reverse=True):
        size = max(1, _BATCH_TOKENS // length)
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def golden_rows(run: Run, backbone: Backbone) -> list[GoldenRow]:
    """Compute the golden rows: built-in texts with expected logits, which are run wherever a bundle is opened."""
    model = ReferenceModel(run, backbone)
    golden = []
    for city, other in zip(GOLDEN, GOLDEN[1:] + GOLDEN[:1], strict=True):
        text = pair_of(run, city, other)
        (logits,) = model.logits(model.encode([text]))
        best = np.argsort(-logits)[: OPEN_VOCABULARY_TOP_K if run.config.open_vocabulary else None]
        texts = [text] if isinstance(text, str) else [*text]
        golden.append(GoldenRow(texts=texts, logits={run.config.labels[i]: float(logits[i]) for i in sorted(best)}))
    return golden


class ReferenceModel:
    """Untouched Transformers on rows of equal length.

    Args:
        run: the task; its prompt embeddings, past key/values and the label weights of a linear head are used as stored.
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

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Return the rows of texts."""
        return self._encoder.encode(texts)

    @torch.no_grad()
    def logits(self, rows: Sequence[Encoding]) -> NDArray[np.float32]:
        """Compute the logits of rows of equal length, float32 [rows, labels]."""
        output = self._model(**self._inputs(rows))
        if self._run.config.label_words is None:
            arrays = self._run.arrays
            if self._run.config.pooling in ("pooled", "pooled-mean"):  # a classifier without its last layer, or BERT
                states = output["logits" if "logits" in output else "pooler_output"]
            else:
                states = torch.stack([self._read(*row) for row in zip(output.last_hidden_state, rows, strict=True)])
            logits: NDArray[np.float32] = states.numpy() @ arrays.label_weights.T + arrays.label_bias
            return logits
        return np.stack([self._scores(self._read(*row)) for row in zip(output.logits, rows, strict=True)])

    def _inputs(self, rows: Sequence[Encoding]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        if self._facts.token_types:
            inputs["token_type_ids"] = torch.tensor([row.type_ids for row in rows])
        if self._run.config.n_prefix:
            prefix_kv = torch.from_numpy(self._run.arrays.prefix_kv)
            wide = [[kv.expand(len(rows), -1, -1, -1) for kv in layer] for layer in prefix_kv]
            inputs["past_key_values"] = DynamicCache([(keys, values) for keys, values in wide])
        if self._run.config.n_prompt_embeddings:
            embeddings = [torch.stack([self._embedding(id_) for id_ in row.ids]) for row in rows]
            inputs["inputs_embeds"] = torch.stack(embeddings)
        else:
            inputs["input_ids"] = torch.tensor([[self._own_id(id_) for id_ in row.ids] for row in rows])
        words_last = self._run.config.label_words is not None and self._run.config.pooling == "last"
        if words_last and "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            inputs["logits_to_keep"] = 1  # of the whole vocabulary at each token nothing else is read
        return inputs

    def _scores(self, logits: Tensor) -> NDArray[np.float32]:
        """Turn logits of the vocabulary into those of the labels, float32 [labels]."""
        scores = logits.tolist()
        means = [np.mean([scores[i] for i in ids]) for ids in self._word_ids]
        metrics = self._run.metrics
        prior = (metrics and metrics.log_prior) or [0.0] * len(means)
        return np.array([(m - p) / self._run.temperature for m, p in zip(means, prior, strict=True)], dtype=np.float32)

    def _embedding(self, id_: int) -> Tensor:
        table: Tensor = self._model.get_input_embeddings().weight
        if id_ < self._facts.vocab:
            return table[id_]
        number = id_ - self._facts.vocab
        if number == self._run.config.n_prompt_embeddings:
            return table[self._own_id(id_)]
        return torch.from_numpy(self._run.arrays.prompt_embeddings[number].copy())

    def _own_id(self, id_: int) -> int:
        """Return the id of the backbone's own token: [MASK] for the mask slot."""
        return id_ if id_ < self._facts.vocab else self._words.id(self._facts.tokens["mask"])

    def _read(self, states: Tensor, row: Encoding) -> Tensor:
        pooling = self._run.config.pooling
        if pooling == "mean":
            return states.mean(0)
        mask_slot = self._facts.vocab + self._run.config.n_prompt_embeddings
        return states[{"last": -1, "first": 0}.get(pooling, row.ids.index(mask_slot) if pooling == "mask" else 0)]

    def _find_words(self) -> list[list[int]]:
        config = self._run.config
        verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words or ())))
        unknown = self._facts.tokens.get("unk")
        return verbalizer.word_ids(self._words, spaced=self._template.answer_spaced, unknown=unknown)
