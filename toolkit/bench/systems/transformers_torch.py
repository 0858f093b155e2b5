"""Transformers and PyTorch at their best here: compiled or not, fp32 or bf16, the leading prompt read once."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import checkpoint_files, load_lengthened, read, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.systems.trial import time_calls
from ptexport.toolkit.bench.workers import Hardware

SETTING = "setting.json"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MODES = ("eager", "compiled", "compiled with its weights as constants")


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Try each setting on some batches, and note the quickest."""
    seconds = {}
    for dtype in _DTYPES:
        for mode in _MODES:
            try:
                seconds[f"{dtype}, {mode}"] = time_calls(case, Scorer(case, dtype, mode, hardware.provider).logits)
            except torch._dynamo.exc.TorchDynamoException:  # no C++ compiler on this machine, or not this model
                continue
    quickest = min(seconds, key=lambda name: seconds[name])
    (folder / SETTING).write_text(json.dumps({"setting": quickest, "tried_s": seconds}), encoding="utf-8")


class System:
    """The model as the quickest setting has it."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        self.setting: str = json.loads((folder / SETTING).read_text("utf-8"))["setting"]
        dtype, mode = self.setting.split(", ")
        self._scorer = Scorer(case, dtype, mode, hardware.provider)
        self.task_files = case.task_files
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        return self._scorer.logits(texts)


class Scorer:
    """A model at one setting.

    Args:
        case: what is asked.
        dtype: one of _DTYPES.
        mode: one of _MODES.
        device: of PyTorch.
    """

    def __init__(self, case: Case, dtype: str, mode: str, device: str) -> None:
        self._device = device
        model = _AfterPrompt(load_lengthened(case, _DTYPES[dtype]).to(device), case)
        torch.compiler.reset()
        torch._inductor.config.freezing = mode == _MODES[2]
        self._run: Any = model if mode == _MODES[0] else torch.compile(model, dynamic=True)
        self._inputs, self._reader, self._n_leading = Inputs(case), Reader(case), model.n_leading

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = tensors(self._inputs, texts, self._device)
        given["input_ids"] = given["input_ids"][:, self._n_leading :]
        return read(self._reader, self._run(**given), given["input_ids"])


class _AfterPrompt(nn.Module):
    """A model, and on a causal one the keys and values of the leading part of the prompt, which it has read."""

    def __init__(self, model: Any, case: Case) -> None:
        super().__init__()
        self.model = model
        words = case.config.word_ids is not None
        self._besides = {"logits_to_keep": 1} if case.config.causal and words else {}
        self.n_leading = len(case.config.leading_ids) if case.config.causal else 0
        self._leading: list[tuple[Tensor, Tensor]] = []
        if self.n_leading:
            cache = DynamicCache()
            with torch.inference_mode():
                model(
                    input_ids=torch.tensor([case.config.leading_ids], device=model.device),
                    past_key_values=cache,
                    use_cache=True,
                )
            self._leading = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]

    def forward(self, input_ids: Tensor, **given: Tensor) -> Any:
        """Answer ids, int64 [b, s], of the positions after the leading part."""
        shape = (len(input_ids), -1, -1, -1)
        states = [(keys.expand(shape), values.expand(shape)) for keys, values in self._leading]
        past = {"past_key_values": DynamicCache(states)} if states else {}
        return self.model(input_ids=input_ids, **given, **past, **self._besides)
