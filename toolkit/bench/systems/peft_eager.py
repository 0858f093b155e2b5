"""PEFT as trained: the template's leading tokens as its virtual tokens, PyTorch without a compiler."""

from pathlib import Path
from typing import Any

import torch

from ptexport.toolkit.bench.case import Case
from ptexport.toolkit.bench.systems.hf import Inputs, Reader, load_lengthened


class System:
    """A PEFT model in inference mode."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        task = "CAUSAL_LM" if case.config.causal and case.config.word_ids is not None else "FEATURE_EXTRACTION"
        self._model = adapt(load_lengthened(case), case, task)
        self._n_leading = len(case.config.leading_ids)
        self._inputs, self._reader = Inputs(case), Reader(case)
        self.task_files: list[Path] = adapter_files(self._model, folder)
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = {name: ids[:, self._n_leading :] for name, ids in self._inputs(texts).items()}
        return self._reader(self._model(**given), given["input_ids"])


def adapt(model: Any, case: Case, task: str) -> Any:
    """Put the leading part of the prompt in front of a model as PEFT's virtual tokens, if there is one."""
    from peft import PromptTuningConfig, get_peft_model

    leading = case.config.leading_ids
    if not leading:
        return model
    adapted: Any = get_peft_model(model, PromptTuningConfig(task_type=task, num_virtual_tokens=len(leading)))
    rows = model.get_input_embeddings()(torch.tensor(leading))
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.copy_(rows)
    return adapted.eval()


def adapter_files(model: Any, folder: Path) -> list[Path]:
    """Save the adapter, to see what a device is sent for a task."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False)  # the table is longer, but not trained
    return sorted(path for path in folder.iterdir() if path.name.startswith("adapter_"))


def checkpoint_files(model: Path) -> list[Path]:
    """The files of a backbone that Transformers reads."""
    return sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors", ".txt"))
