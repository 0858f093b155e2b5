"""Texts -> ids, and a model's output -> logits of the labels; without torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.toolkit.bench.systems.case import Case


class Inputs:
    """Encodes texts of equal length as the inputs of the model.

    Attributes:
        names: names of the inputs, each int64 [b, s].
    """

    def __init__(self, case: Case) -> None:
        self._tokenizer = case.tokenizer()
        self.names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if case.config.token_types else 2]

    def __call__(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        """Encode texts; int64 [b, s] each."""
        encodings = self._tokenizer.encode_batch(texts)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        types = np.array([encoding.type_ids for encoding in encodings], dtype=np.int64)
        return dict(zip(self.names, (ids, np.ones_like(ids), types), strict=False))


class LabelHead:
    """Turns logits of the vocabulary, or hidden states, into logits of the labels.

    Attributes:
        output: name of the model output to use, in Transformers.
    """

    def __init__(self, case: Case) -> None:
        self._pooling, self._word_ids = case.config.pooling, case.config.word_ids
        self._temperature = case.config.temperature
        self._label_weights, self._label_bias = case.label_weights, case.label_bias
        self._mask_slot = case.config.vocab + len(case.prompt_embeddings) - 1 if self._pooling == "mask" else None
        states = "pooler_output" if self._pooling == "pooled" else "last_hidden_state"
        self.output = states if self._word_ids is None else "logits"

    def pool(self, output: Any, input_ids: Any) -> Any:
        """Pool a model's output as the run does.

        Args:
            output: NumPy array or tensor [b, s, …] of all positions or the last ones; or [b, h] if already pooled.
            input_ids: int64 [b, s'], ids of the last s' positions, to find the mask slot.

        Returns:
            [b, …].
        """
        if self.output == "pooler_output":
            return output
        if self._pooling == "mean":
            return output.mean(1)
        if self._pooling == "mask":
            # The texts have one template and one length, so the slot has the same position in all.
            place = ((input_ids[:1] == self._mask_slot) * 1).argmax(1) + (output.shape[1] - input_ids.shape[1])
            return output[:, place][:, 0]
        return output[:, 0 if self._pooling == "first" else -1]

    def label_logits(self, pooled: NDArray[np.float32]) -> list[list[float]]:
        """Average the logits [b, v] of each label's words, or apply the linear head to hidden states [b, h]."""
        if self._word_ids is None:
            logits = pooled @ self._label_weights.T + self._label_bias
        else:
            logits = np.stack([pooled[:, ids].mean(1) for ids in self._word_ids], 1) / self._temperature
        nested: list[list[float]] = logits.tolist()
        return nested
