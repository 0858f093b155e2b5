"""The untouched model as `torch.onnx.export` exports it: prompt as tokens, logits of the whole vocabulary."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.graph import MODEL, GraphInfo
from ptexport.toolkit.bench.systems.hf import load_extended
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.workers import Hardware

EXAMPLE = (2, 16)
OPSET = 18


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export the model."""
    output = LabelHead(case).output
    export_onnx(_OneOutput(load_extended(case), case, output), folder / MODEL, Inputs(case).names, output)
    GraphInfo(setting=f"fp32, opset {OPSET}", output="all").write(folder)


def example(names: list[str]) -> dict[str, Tensor]:
    """Make inputs to trace a model with, int64 of shape EXAMPLE each."""
    return {name: torch.full(EXAMPLE, int(name == "attention_mask")) for name in names}


def export_onnx(
    module: nn.Module, path: Path, names: list[str], output: str, fixed: dict[str, Tensor] | None = None
) -> None:
    """Export a module.

    Args:
        module: module that takes all inputs by name and returns a tensor.
        path: file to write.
        names: names of the inputs with dynamic batch size and length.
        output: name of the output.
        fixed: more inputs, with fixed shapes.
    """
    fixed = fixed or {}
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        module.eval(),
        kwargs=example(names) | fixed,
        f=path,
        input_names=[*names, *fixed],
        output_names=[output],
        dynamic_shapes=dict.fromkeys(names, free) | {name: {} for name in fixed},
        opset_version=OPSET,
        dynamo=True,
        external_data=True,
        verbose=False,
    )


class _OneOutput(nn.Module):
    """A model with one of its outputs."""

    def __init__(self, model: Any, case: Case, output: str) -> None:
        super().__init__()
        self.model, self._output = model, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        output: Tensor = outputs[self._output]
        return output
