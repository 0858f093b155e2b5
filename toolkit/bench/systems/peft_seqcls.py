"""PEFT for sequence classification: of the vocabulary only the label rows, at the position that the model reads."""

from pathlib import Path

import torch

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import Case
from ptexport.toolkit.bench.systems.hf import Inputs, load_classifier
from ptexport.toolkit.bench.systems.peft_eager import adapt, adapter_files, checkpoint_files


class System:
    """A PEFT model in inference mode whose classification layer is the label rows."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        model = load_classifier(case)
        if model is None:
            biased = " with a bias" if case.label_bias.any() else ""
            raise BenchError(
                "peft-seqcls: reads the last position without a bias on a causal model, the pooled one on others, and "
                f"this run reads {case.config.read!r}{biased}; leave it out"
            )
        self._besides = {"use_cache": False} if case.config.causal else {}
        self._model = adapt(model, case, "SEQ_CLS")
        self._n_leading = len(case.config.leading_ids)
        self._inputs = Inputs(case)
        self.task_files: list[Path] = adapter_files(self._model, folder)
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = {name: ids[:, self._n_leading :] for name, ids in self._inputs(texts).items()}
        logits: list[list[float]] = self._model(**given, **self._besides).logits.tolist()
        return logits
