"""PEFT for sequence classification: of the vocabulary only the label rows, at the position that the model reads."""

from pathlib import Path
from typing import Any

import torch

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import Case
from ptexport.toolkit.bench.systems.hf import Inputs, lengthen
from ptexport.toolkit.bench.systems.peft_eager import adapt, adapter_files, checkpoint_files


class System:
    """A PEFT model in inference mode whose classification layer is the label rows."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        from transformers import AutoModelForSequenceClassification

        path, n_labels = case.config.model, len(case.label_rows)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, num_labels=n_labels)
        model = lengthen(loaded.eval().requires_grad_(False), case)
        _set_head(model, case)
        model.config.pad_token_id = model.config.vocab_size  # texts of one length are not padded: no id is padding
        self._besides = {"use_cache": False} if case.config.causal else {}
        self._model = adapt(model, case, "SEQ_CLS")
        self._n_leading = len(case.config.leading_ids)
        self._inputs = Inputs(case)
        self.task_files: list[Path] = adapter_files(self._model, folder)
        self.files = [*checkpoint_files(Path(path)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = {name: ids[:, self._n_leading :] for name, ids in self._inputs(texts).items()}
        logits: list[list[float]] = self._model(**given, **self._besides).logits.tolist()
        return logits


def _set_head(model: Any, case: Case) -> None:
    """Make the label rows the classification layer, where Transformers' reads what the bundle does.

    Raises:
        BenchError: it reads something else.
    """
    rows, bias = torch.from_numpy(case.label_rows), torch.from_numpy(case.label_bias)
    if case.config.causal and not bias.any():
        model.score.weight.copy_(rows)
    elif case.config.read == "pooled" and isinstance(getattr(model, "classifier", None), torch.nn.Linear):
        model.classifier.weight.copy_(rows)
        model.classifier.bias.copy_(bias)
    else:
        raise BenchError(
            "peft-seqcls: reads the last position without a bias on a causal model, the pooled one on others, and this "
            f"run reads {case.config.read!r}{' with a bias' if bias.any() else ''}; leave it out"
        )
