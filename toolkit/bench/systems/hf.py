"""The Transformers model of a case, untouched or its embedding table made longer by the prompt; its logits' labels."""

from typing import Any

import torch
from torch import Tensor, nn

from ptexport.toolkit.bench.case import Case


def load_model(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model: with its language-model head for label words, without for a linear head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModelForCausalLM if case.config.causal else AutoModelForMaskedLM
    if case.config.word_ids is None:
        loader = AutoModel
    return loader.from_pretrained(case.config.model, dtype=dtype).eval().requires_grad_(False)


def load_lengthened(case: Case, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model with the prompt's rows in its embedding table."""
    return lengthen(load_model(case, dtype), case)


def load_classifier(case: Case) -> Any:
    """Load it for sequence classification, its layer the label rows; None: that reads another state than the run."""
    from transformers import AutoModelForSequenceClassification

    path, n_labels = case.config.model, len(case.label_rows)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, num_labels=n_labels)
    model = lengthen(loaded.eval().requires_grad_(False), case)
    rows, bias = torch.from_numpy(case.label_rows), torch.from_numpy(case.label_bias)
    if case.config.causal and case.config.read == "last" and not case.label_bias.any():
        model.score.weight.copy_(rows)
    elif case.config.read == "pooled" and isinstance(getattr(model, "classifier", None), nn.Linear):
        model.classifier.weight.copy_(rows)
        model.classifier.bias.copy_(bias)
    else:
        return None
    model.config.pad_token_id = model.config.vocab_size  # texts of one length are not padded: no id is padding
    return model


def lengthen(model: Any, case: Case) -> Any:
    """Append the prompt's rows to a model's embedding table; what it gives logits of stays."""
    table = model.get_input_embeddings().weight
    longer = torch.cat([table, torch.from_numpy(case.prompt_rows).to(table.dtype)])
    model.set_input_embeddings(nn.Embedding(len(longer), longer.shape[1], _weight=longer, _freeze=True))
    model.config.vocab_size = len(longer)  # by which PEFT finds the table
    return model


class Inputs:
    """Texts -> what Transformers takes; all of one length."""

    def __init__(self, case: Case) -> None:
        self._tokenizer = case.tokenizer()
        self._token_types = case.config.token_types

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """Tokenise, int64 [b, s] each."""
        encodings = self._tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._token_types:
            given["token_type_ids"] = torch.tensor([encoding.type_ids for encoding in encodings])
        return given


class Reader:
    """Logits of the vocabulary, or states -> logits of the labels."""

    def __init__(self, case: Case) -> None:
        self._config = case.config
        self._label_rows, self._label_bias = torch.from_numpy(case.label_rows), torch.from_numpy(case.label_bias)
        self._mask_slot = case.config.vocab + len(case.prompt_rows) - 1 if case.config.read == "mask" else None

    def __call__(self, output: Any, input_ids: Tensor) -> list[list[float]]:
        """Read a model's output.

        Args:
            output: of all positions, or of the last alone.
            input_ids: int64 [b, s], of the last s positions of these or of all, to find the mask slot.
        """
        if self._config.word_ids is not None:
            return self.of_words(self.pick(output.logits, input_ids))
        if self._config.read == "pooled":
            return self.of_states(output.pooler_output)
        return self.of_states(self.pick(output.last_hidden_state, input_ids))

    def pick(self, of_all: Tensor, input_ids: Tensor) -> Tensor:
        """Take of all positions, float [b, s, …], what is read; ids as above."""
        read = self._config.read
        if read == "mean":
            return of_all.mean(1)
        if read == "mask":
            assert self._mask_slot is not None, "set above"
            place = torch.eq(input_ids, self._mask_slot).int().argmax(1) + (of_all.shape[1] - input_ids.shape[1])
            return of_all[torch.arange(len(of_all)), place]
        return of_all[:, 0 if read == "first" else -1]

    def of_words(self, picked: Tensor) -> list[list[float]]:
        """Average the logits of each label's words; of the vocabulary, float [b, v]."""
        assert self._config.word_ids is not None
        means = [picked[:, ids].float().mean(1) for ids in self._config.word_ids]
        logits: list[list[float]] = (torch.stack(means, 1) / self._config.temperature).tolist()
        return logits

    def of_states(self, states: Tensor) -> list[list[float]]:
        """Apply the linear head to states, float [b, h]."""
        logits: list[list[float]] = (states.float() @ self._label_rows.T + self._label_bias).tolist()
        return logits
