"""Texts -> ids, and a model's output -> logits of the labels; without torch, which ONNX Runtime does not need."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptexport.toolkit.bench.systems.case import Case


class Inputs:
    """Texts -> what the model takes; all of one length.

    Attributes:
        names: of what it takes, each int64 [b, s].
    """

    def __init__(self, case: Case) -> None:
        self._tokenizer = case.tokenizer()
        self.names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if case.config.token_types else 2]

    def __call__(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        """Tokenise."""
        encodings = self._tokenizer.encode_batch(texts)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        types = np.array([encoding.type_ids for encoding in encodings], dtype=np.int64)
        return dict(zip(self.names, (ids, np.ones_like(ids), types), strict=False))


class Reader:
    """Logits of the vocabulary, or states -> logits of the labels.

    Attributes:
        output: what a model of Transformers calls that of which is read.
    """

    def __init__(self, case: Case) -> None:
        self._read, self._word_ids = case.config.pooling, case.config.word_ids
        self._temperature = case.config.temperature
        self._label_rows, self._label_bias = case.label_weights, case.label_bias
        self._mask_slot = case.config.vocab + len(case.prompt_embeddings) - 1 if self._read == "mask" else None
        states = "pooler_output" if self._read == "pooled" else "last_hidden_state"
        self.output = states if self._word_ids is None else "logits"

    def pick(self, of_all: Any, input_ids: Any) -> Any:
        """Take what is read.

        Args:
            of_all: [b, s, …] of all positions, or of the last ones alone; or [b, h], pooled. Of NumPy or torch.
            input_ids: int64 [b, s'], of the last s' positions of these or of all, to find the mask slot.

        Returns:
            [b, …].
        """
        if self.output == "pooler_output":
            return of_all
        if self._read == "mean":
            return of_all.mean(1)
        if self._read == "mask":
            # One template and texts of one length: the slot is at one place.
            place = ((input_ids[:1] == self._mask_slot) * 1).argmax(1) + (of_all.shape[1] - input_ids.shape[1])
            return of_all[:, place][:, 0]
        return of_all[:, 0 if self._read == "first" else -1]

    def of_labels(self, picked: NDArray[np.float32]) -> list[list[float]]:
        """Average the logits of each label's words, [b, v] of the vocabulary; or apply the linear head to [b, h]."""
        if self._word_ids is None:
            logits = picked @ self._label_rows.T + self._label_bias
        else:
            logits = np.stack([picked[:, ids].mean(1) for ids in self._word_ids], 1) / self._temperature
        rows: list[list[float]] = logits.tolist()
        return rows
