"""PEFT for sequence classification (SEQ_CLS), with the label weights as its classification layer."""

from pathlib import Path
from typing import Any

import torch

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import checkpoint_files, load_classifier, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs
from ptexport.toolkit.bench.systems.peft_eager import load_adapter, save_adapter
from ptexport.toolkit.bench.workers import Hardware


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Save the adapter with the classification layer."""
    save_adapter(_load(case), case, "SEQ_CLS", folder)


def _load(case: Case) -> Any:
    model = load_classifier(case)
    if model is None:
        biased = " with a bias" if case.label_bias.any() else ""
        raise BenchError(
            f"peft-seqcls: got pooling {case.config.pooling!r}{biased}, need 'last' without a bias on a causal model "
            "or 'pooled' on others; leave it out"
        )
    return model


class PeftSeqCls:
    """A PEFT sequence classifier in inference mode."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self._device = hardware.provider
        self._model = load_adapter(_load(case), folder, self._device)
        self._n_leading = len(case.config.leading_ids)
        self._inputs = Inputs(case)
        self.task_files = sorted(folder.iterdir())
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        given = tensors(self._inputs, texts, self._device, self._n_leading)
        logits: list[list[float]] = self._model(**given).logits.tolist()
        return logits


SYSTEM = PeftSeqCls
