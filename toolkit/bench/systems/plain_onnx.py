"""The untouched model in ONNX, as `torch.onnx.export` makes it: prompt as tokens, all logits out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptexport.runtime.providers import load_onnxruntime
from ptexport.toolkit.bench.case import Case
from ptexport.toolkit.bench.systems.hf import Inputs, Reader, load_lengthened

MODEL = "model.onnx"
_EXAMPLE = (2, 16)


def prepare(case: Case, folder: Path) -> None:
    """Export the model."""
    export_onnx(_Whole(load_lengthened(case), case), folder / MODEL, input_names(case), output_name(case))


def output_name(case: Case) -> str:
    """What the model gives that is read."""
    if case.config.word_ids is not None:
        return "logits"
    return "pooler_output" if case.config.read == "pooled" else "last_hidden_state"


def input_names(case: Case) -> list[str]:
    """What the model takes, each int64 [b, s]."""
    return ["input_ids", "attention_mask", "token_type_ids"][: 3 if case.config.token_types else 2]


def export_onnx(
    module: nn.Module, path: Path, names: list[str], output: str, fixed: dict[str, Tensor] | None = None
) -> None:
    """Export a module.

    Args:
        module: takes all inputs by name and returns a tensor.
        path: of the file.
        names: of inputs of any batch and length.
        output: name of what it returns.
        fixed: more inputs, of the shapes that these have.
    """
    fixed = fixed or {}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        module.eval(),
        kwargs={name: torch.full(_EXAMPLE, int(name == "attention_mask")) for name in names} | fixed,
        f=path,
        input_names=[*names, *fixed],
        output_names=[output],
        dynamic_shapes=dict.fromkeys(names, free) | {name: {} for name in fixed},
        opset_version=18,
        dynamo=True,
        external_data=True,
        verbose=False,
    )


def open_session(path: Path, threads: int) -> Any:
    """Open a graph in ONNX Runtime as it comes."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class _Whole(nn.Module):
    """The model, and one of its outputs."""

    def __init__(self, model: Any, case: Case) -> None:
        super().__init__()
        self.model, self._output = model, output_name(case)
        self._besides = {"use_cache": False} if case.config.causal else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        answered = self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self._besides)
        output: Tensor = getattr(answered, self._output)
        return output


class System:
    """The graph in ONNX Runtime."""

    setting = "fp32, opset 18"

    def __init__(self, case: Case, folder: Path, threads: int) -> None:
        self._session = open_session(folder / MODEL, threads)
        self._inputs, self._reader, self._output = Inputs(case), Reader(case), output_name(case)
        self.files = sorted(path for path in folder.iterdir() if path.name.startswith(MODEL))
        self.task_files = self.files  # the prompt is in the embedding table

    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = self._inputs(texts)
        (output,) = self._session.run([self._output], {name: ids.numpy() for name, ids in given.items()})
        return self._reader(SimpleNamespace(**{self._output: torch.from_numpy(np.asarray(output))}), given["input_ids"])
