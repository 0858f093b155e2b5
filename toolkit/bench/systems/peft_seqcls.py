"""PEFT for sequence classification: of the vocabulary only the label rows, at the last position."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import Case
from ptexport.toolkit.bench.systems.hf import Inputs, longer_table
from ptexport.toolkit.bench.systems.peft_eager import adapt, adapter_files, checkpoint_files


class System:
    """A PEFT model in inference mode whose classification layer is the label rows."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        from transformers import AutoModelForSequenceClassification

        if not case.config.causal or case.label_bias.any():
            raise BenchError(
                "peft-seqcls: reads the last position without a bias, as causal models have it; leave it out"
            )
        loader = AutoModelForSequenceClassification
        path, n_labels = case.config.model, len(case.label_rows)
        model: Any = loader.from_pretrained(path, dtype=torch.float32, num_labels=n_labels).requires_grad_(False)
        table = longer_table(case, model.get_input_embeddings().weight)
        model.set_input_embeddings(nn.Embedding.from_pretrained(table))
        model.score.weight.copy_(torch.from_numpy(case.label_rows))
        model.config.pad_token_id = len(table)  # texts of one length are not padded, and no id is taken for padding
        self._model = adapt(model.eval(), case, "SEQ_CLS")
        self._n_leading = len(case.config.leading_ids)
        self._inputs = Inputs(case)
        self.task_files: list[Path] = adapter_files(self._model, folder)
        self.files = [*checkpoint_files(Path(path)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = {name: ids[:, self._n_leading :] for name, ids in self._inputs(texts).items()}
        logits: list[list[float]] = self._model(**given).logits.tolist()
        return logits
