"""Texts of a task -> the logits that untouched Transformers computes, one unpadded text at a time, in fp32.

The reference shares only token ids with the graph: it calls the model as loaded, with its full vocabulary, and puts the
prompt embeddings into the row in a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    expected = np.empty((len(texts), len(run.config.labels)), dtype=np.float32)
    for i, text in enumerate(texts):
        expected[i] = model.logits(text)
        progress.rows(i + 1, len(texts))
    return expected


def golden_rows(run: Run, backbone: Backbone) -> list[GoldenRow]:
    """Compute the golden rows: built-in texts with expected logits, which are run wherever a bundle is opened."""
    model = ReferenceModel(run, backbone)
    golden = []
    for city, other in zip(GOLDEN, GOLDEN[1:] + GOLDEN[:1], strict=True):
        text = pair_of(run, city, other)
        logits = model.logits(text)
        best = np.argsort(-logits)[: OPEN_VOCABULARY_TOP_K if run.config.open_vocabulary else None]
        texts = [text] if isinstance(text, str) else [*text]
        golden.append(GoldenRow(texts=texts, logits={run.config.labels[i]: float(logits[i]) for i in sorted(best)}))
    return golden


class ReferenceModel:
    """Untouched Transformers on one text at a time.

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

    @torch.no_grad()
    def logits(self, text: Text) -> NDArray[np.float32]:
        """Compute the logits of one text, float32 [labels]."""
        (encoding,) = self._encoder.encode([text])
        extra: dict[str, Any] = {"token_type_ids": torch.tensor([encoding.type_ids])} if self._facts.token_types else {}
        if self._run.config.n_prefix:
            prefix_kv = torch.from_numpy(self._run.arrays.prefix_kv)
            extra["past_key_values"] = DynamicCache([(layer[0], layer[1]) for layer in prefix_kv])
        if self._run.config.n_prompt_embeddings:
            embeddings = torch.stack([self._embedding(id_) for id_ in encoding.ids])
            output = self._model(inputs_embeds=embeddings[None], **extra)
        else:
            output = self._model(input_ids=torch.tensor([[self._own_id(id_) for id_ in encoding.ids]]), **extra)
        if self._run.config.label_words is None:
            arrays = self._run.arrays
            if self._run.config.pooling in ("pooled", "pooled-mean"):  # a classifier without its last layer, or BERT
                state = output["logits" if "logits" in output else "pooler_output"][0]
            else:
                state = self._read(output.last_hidden_state[0], encoding.ids)
            logits: NDArray[np.float32] = arrays.label_weights @ state.numpy() + arrays.label_bias
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
        number = id_ - self._facts.vocab
        if number == self._run.config.n_prompt_embeddings:
            return table[self._own_id(id_)]
        return torch.from_numpy(self._run.arrays.prompt_embeddings[number].copy())

    def _own_id(self, id_: int) -> int:
        """Return the id of the backbone's own token: [MASK] for the mask slot."""
        return id_ if id_ < self._facts.vocab else self._words.id(self._facts.tokens["mask"])

    def _read(self, states: Tensor, ids: list[int]) -> Tensor:
        pooling = self._run.config.pooling
        if pooling == "mean":
            return states.mean(0)
        mask_slot = self._facts.vocab + self._run.config.n_prompt_embeddings
        return states[{"last": -1, "first": 0}.get(pooling, ids.index(mask_slot) if pooling == "mask" else 0)]

    def _find_words(self) -> list[list[int]]:
        config = self._run.config
        verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words or ())))
        unknown = self._facts.tokens.get("unk")
        return verbalizer.word_ids(self._words, spaced=self._template.answer_spaced, unknown=unknown)
