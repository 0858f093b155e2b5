"""Untouched Transformers, one text at a time, unpadded, its embeddings joined by a loop: what every graph must answer.

It shares nothing with what it checks but ids: it calls the model as loaded, full vocabulary and all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

Report = Callable[[int, int], None]
"""Told how many of how many rows are done."""


def expected_logits(run: Run, backbone: Backbone, texts: Sequence[Text], report: Report) -> NDArray[np.float32]:
    """Ask the oracle, float32 [texts, labels]."""
    oracle = Oracle(run, backbone)
    expected = np.empty((len(texts), len(run.config.labels)), dtype=np.float32)
    for i, text in enumerate(texts):
        expected[i] = oracle.logits(text)
        report(i + 1, len(texts))
    return expected


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
            states = torch.from_numpy(self._run.arrays.prefix_kv)
            extra["past_key_values"] = DynamicCache([(layer[0], layer[1]) for layer in states])
        if self._run.config.n_prompt_embeddings:
            embeddings = torch.stack([self._embedding(id_) for id_ in encoding.ids])
            output = self._model(inputs_embeds=embeddings[None], **extra)
        else:
            output = self._model(input_ids=torch.tensor([[self._own_id(id_) for id_ in encoding.ids]]), **extra)
        if self._run.config.label_words is None:
            baked = self._run.arrays
            pooled = self._run.config.pooling == "pooled"
            state = output.pooler_output[0] if pooled else self._read(output.last_hidden_state[0], encoding.ids)
            logits: NDArray[np.float32] = baked.label_weights @ state.numpy() + baked.label_bias
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
        if row == self._run.config.n_prompt_embeddings:
            return table[self._own_id(id_)]
        return torch.from_numpy(self._run.arrays.prompt_embeddings[row].copy())

    def _own_id(self, id_: int) -> int:
        """The backbone's own token: [MASK] for the mask slot."""
        return id_ if id_ < self._facts.vocab else self._words.id(self._facts.tokens["mask"])

    def _read(self, states: Tensor, ids: list[int]) -> Tensor:
        read = self._run.config.pooling
        if read == "mean":
            return states.mean(0)
        mask_slot = self._facts.vocab + self._run.config.n_prompt_embeddings
        return states[{"last": -1, "first": 0}.get(read, ids.index(mask_slot) if read == "mask" else 0)]

    def _find_words(self) -> list[list[int]]:
        config = self._run.config
        verbalizer = Verbalizer(labels=tuple(config.labels), words=tuple(map(tuple, config.label_words or ())))
        unknown = self._facts.tokens.get("unk")
        return verbalizer.word_ids(self._words, spaced=self._template.answer_spaced, unknown=unknown)
