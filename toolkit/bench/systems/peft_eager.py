"""PEFT as trained, in eager PyTorch, with the template's leading tokens as its virtual tokens."""

import json
from pathlib import Path
from typing import Any

import torch

from ptexport.toolkit.bench.systems.baselines import SETTING
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import DTYPES, checkpoint_files, label_logits, load_extended, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.workers import Hardware

ADAPTER = "adapter_config.json"


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Save the adapter, which is what a device needs for a task."""
    task = "CAUSAL_LM" if case.config.causal and case.config.word_ids is not None else "FEATURE_EXTRACTION"
    save_adapter(load_extended(case), case, task, folder)


def save_adapter(model: Any, case: Case, task: str, folder: Path) -> None:
    """Save the leading part of the prompt, if there is one, as PEFT's virtual tokens.

    Args:
        model: model with the prompt embeddings in its embedding table.
        case: task and prompt.
        task: PEFT's task type.
        folder: folder to write to.
    """
    from peft import PromptTuningConfig, get_peft_model

    leading = case.config.leading_ids
    if not leading:
        return
    embeddings = model.get_input_embeddings()(torch.tensor(leading))
    adapted: Any = get_peft_model(model, PromptTuningConfig(task_type=task, num_virtual_tokens=len(leading)))
    with torch.no_grad():
        adapted.prompt_encoder["default"].embedding.weight.copy_(embeddings)
    adapted.save_pretrained(folder, save_embedding_layers=False)  # the embedding table is extended, but not trained


def load_adapter(model: Any, folder: Path, device: str) -> Any:
    """Add a saved adapter, if there is one, to a model, and move both to a device."""
    from peft import PeftModel

    if (folder / ADAPTER).exists():
        model = PeftModel.from_pretrained(model, folder, torch_device=device).eval()
    return model.to(device)


class PeftEager:
    """A PEFT model in inference mode, in fp32 unless its folder has another setting."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        given = folder / SETTING
        self.setting: str = json.loads(given.read_text("utf-8"))["setting"] if given.exists() else "fp32, eager"
        dtype = DTYPES[self.setting.partition(",")[0]]
        self._device = hardware.provider
        self._model = load_adapter(load_extended(case, dtype), folder, self._device).to(dtype)
        self._n_leading = len(case.config.leading_ids)
        self._inputs, self._head = Inputs(case), LabelHead(case)
        self.task_files = sorted(path for path in folder.iterdir() if path.name != SETTING)
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        given = tensors(self._inputs, texts, self._device, self._n_leading)
        return label_logits(self._head, self._model(**given), given["input_ids"])


SYSTEM = PeftEager
