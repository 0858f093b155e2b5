"""Transformers and PyTorch at their best here: compiled or not, fp32 or bf16, the leading prompt read once."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ptexport.toolkit.bench.case import Case, make_texts, plain_words
from ptexport.toolkit.bench.systems.hf import Inputs, Reader, load_model
from ptexport.toolkit.bench.systems.peft_eager import checkpoint_files

SETTING = "setting.json"
_TRIED_BATCH, _TRIED_TOKENS, _TRIED_ROUNDS = 8, 28, 5


def prepare(case: Case, folder: Path) -> None:
    """Try each setting on a batch, and note the quickest."""
    seconds = {}
    for dtype in ("fp32", "bf16"):
        for compiled in (False, True):
            try:
                model = _Model(case, dtype, compiled=compiled)
                seconds[f"{dtype}, {'compiled' if compiled else 'eager'}"] = _time(case, model)
            except torch._dynamo.exc.TorchDynamoException:  # no C++ compiler on this machine, or not this model
                continue
    quickest = min(seconds, key=lambda name: seconds[name])
    (folder / SETTING).write_text(json.dumps({"setting": quickest, "tried_s": seconds}), encoding="utf-8")


def _time(case: Case, model: "_Model") -> float:
    words = plain_words(case.tokenizer())
    times = []
    for number in range(_TRIED_ROUNDS + 2):
        texts = make_texts(words, _TRIED_BATCH, _TRIED_TOKENS, f"try {number}")
        started = time.perf_counter()
        model.logits(texts)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


class System:
    """The model as the quickest setting has it."""

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        self.setting: str = json.loads((folder / SETTING).read_text("utf-8"))["setting"]
        dtype, how = self.setting.split(", ")
        self._model = _Model(case, dtype, compiled=how == "compiled")
        self.task_files = [case.path / "arrays.safetensors", case.path / "tokenizer.json"]
        self.files = [*checkpoint_files(Path(case.config.model)), *self.task_files]

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        return self._model.logits(texts)


class _Model:
    """A model at one setting, and the keys and values of the leading prompt."""

    def __init__(self, case: Case, dtype: str, *, compiled: bool) -> None:
        self._model = load_model(case, torch.float32 if dtype == "fp32" else torch.bfloat16)
        self._run: Any = torch.compile(self._model, dynamic=True) if compiled else self._model
        self._inputs, self._reader = Inputs(case), Reader(case)
        self._one_position = {"logits_to_keep": 1} if case.config.causal and case.config.word_ids is not None else {}
        self._leading: list[tuple[Tensor, Tensor]] = []
        if case.config.causal and case.config.leading_ids:
            with torch.inference_mode():
                cache = DynamicCache()
                self._model(input_ids=torch.tensor([case.config.leading_ids]), past_key_values=cache, use_cache=True)
            self._leading = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given: dict[str, Any] = self._inputs(texts)
        ids = given["input_ids"]
        if self._leading:
            n_leading = self._leading[0][0].shape[2]
            given["input_ids"] = ids[:, n_leading:]
            states = [
                (keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1))
                for keys, values in self._leading
            ]
            given["past_key_values"] = DynamicCache(states)
        return self._reader(self._run(**given, **self._one_position), ids)
