"""PEFT as trained: the template's leading tokens as its virtual tokens, PyTorch without a compiler."""

from pathlib import Path
from typing import Any

import torch

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import checkpoint_files, load_lengthened, read, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.workers import Hardware

ADAPTER = "adapter_config.json"


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Save the adapter, which is what a device is sent for a task."""
    task = "CAUSAL_LM" if case.config.causal and case.config.word_ids is not None else "FEATURE_EXTRACTION"
    save_adapter(load_lengthened(case), case, task, folder)


def save_adapter(model: Any, case: Case, task: str, folder: Path) -> None:
    """Save the leading part of the prompt as PEFT's virtual tokens, if there is one.

    Args:
        model: whose embedding table has the prompt's rows.
        case: what is asked.
        task: PEFT's name for it.
        folder: where.
    """
    from peft import PromptTuningConfig, get_peft_model

    leading = case.config.leading_ids
    if not leading:
        return
    rows = model.get_input_embeddings()(torch.tensor(leading))
    adapted: Any = get_peft_model(model, PromptTuningConfig(task_type=task, num_virtual_tokens=len(leading)))
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.copy_(rows)
    adapted.save_pretrained(folder, save_embedding_layers=False)  # the table is longer, but not trained


def load_adapter(model: Any, folder: Path, device: str) -> Any:
    """Put a saved adapter, if there is one, on a model, and both on a device."""
    from peft import PeftModel

    if (folder / ADAPTER).exists():
        model = PeftModel.from_pretrained(model, folder, torch_device=device).eval()
    return model.to(device)


class System:
    """A PEFT model in inference mode."""

    setting = "fp32, eager"

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self._device = hardware.provider
        self._model = load_adapter(load_lengthened(case), folder, self._device)
        self._n_leading = len(case.config.leading_ids)
        self._inputs, self._reader = Inputs(case), Reader(case)
        self.task_files = sorted(folder.iterdir())
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = tensors(self._inputs, texts, self._device, self._n_leading)
        return read(self._reader, self._model(**given), given["input_ids"])
