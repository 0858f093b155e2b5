"""Transformers in PyTorch with the fastest setting on this machine; the leading prompt is computed once."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ptexport.toolkit.bench.systems.baselines import SETTING
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import DTYPES, checkpoint_files, label_logits, load_extended, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.systems.timing import time_calls
from ptexport.toolkit.bench.workers import Hardware

_MODES = ("eager", "compiled", "compiled with its weights as constants")
_CUDA_GRAPHS = "compiled with CUDA graphs"
_MOST_SHAPES = 64  # that are compiled; further ones fail, else PyTorch would silently run them eagerly


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Time each setting and record the fastest."""
    seconds = {}
    dtypes, modes = (("fp32", "bf16"), _MODES) if hardware.provider == "cpu" else (DTYPES, (*_MODES, _CUDA_GRAPHS))
    for dtype in dtypes:
        for mode in modes:
            try:
                seconds[f"{dtype}, {mode}"] = time_calls(case, TorchModel(case, dtype, mode, hardware.provider).logits)
            except torch._dynamo.exc.TorchDynamoException:  # no C++ compiler, or the model cannot be compiled
                continue
    fastest = min(seconds, key=lambda name: seconds[name])
    (folder / SETTING).write_text(json.dumps({"setting": fastest, "seconds": seconds}), encoding="utf-8")


class TransformersTorch:
    """The model with the fastest setting."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self.setting: str = json.loads((folder / SETTING).read_text("utf-8"))["setting"]
        dtype, mode = self.setting.split(", ")
        self._model = TorchModel(case, dtype, mode, hardware.provider)
        self.task_files = case.task_files
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        return self._model.logits(texts)


class TorchModel:
    """The model with one setting.

    Args:
        case: task and prompt.
        dtype: one of DTYPES.
        mode: one of _MODES, or _CUDA_GRAPHS, which compiles and records each shape (`mode="max-autotune"`).
        device: PyTorch's name of the device.
    """

    def __init__(self, case: Case, dtype: str, mode: str, device: str) -> None:
        self._device = device
        model = _AfterPrompt(load_extended(case, DTYPES[dtype]).to(device), case)
        torch.compiler.reset()
        torch._inductor.config.freezing = mode == _MODES[2]
        torch._dynamo.config.recompile_limit = _MOST_SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._run: Any = model
        if mode == _CUDA_GRAPHS:
            self._run = torch.compile(model, dynamic=False, mode="max-autotune")
        elif mode != _MODES[0]:
            self._run = torch.compile(model, dynamic=True)
        self._inputs, self._head, self._n_leading = Inputs(case), LabelHead(case), model.n_leading

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        given = tensors(self._inputs, texts, self._device)
        given["input_ids"] = given["input_ids"][:, self._n_leading :]
        return label_logits(self._head, self._run(**given), given["input_ids"])


class _AfterPrompt(nn.Module):
    """A model and, if it is causal, the past key/values of the leading part of the prompt."""

    def __init__(self, model: Any, case: Case) -> None:
        super().__init__()
        self.model = model
        words = case.config.word_ids is not None
        self._options = {"logits_to_keep": 1} if case.config.causal and words else {}
        self.n_leading = len(case.config.leading_ids) if case.config.causal else 0
        self._prefix_kv: list[tuple[Tensor, Tensor]] = []
        if self.n_leading:
            cache = DynamicCache()
            with torch.inference_mode():
                model(
                    input_ids=torch.tensor([case.config.leading_ids], device=model.device),
                    past_key_values=cache,
                    use_cache=True,
                )
            self._prefix_kv = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]

    def forward(self, input_ids: Tensor, **given: Tensor) -> Any:
        """Run the model on the ids after the leading part, int64 [b, s]."""
        shape = (len(input_ids), -1, -1, -1)
        prefix_kv = [(keys.expand(shape), values.expand(shape)) for keys, values in self._prefix_kv]
        past = {"past_key_values": DynamicCache(prefix_kv)} if prefix_kv else {}
        return self.model(input_ids=input_ids, **given, **past, **self._options)


SYSTEM = TransformersTorch
