"""The prompt encoder inside the graph, as PaddleNLP's prompt models are exported: each call makes the rows.

Source: PaddleNLP's SoftTemplate and export, paddlenlp/prompt/template.py: the prompt's ids are an input, so nothing of
the encoder can be computed beforehand; logits are of the whole vocabulary at the position that is read.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.graph import MODEL, PROMPT_IDS, Exported
from ptexport.toolkit.bench.systems.hf import load_model
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.systems.plain_onnx import OPSET, export_onnx
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.prompt.encoders import PromptEncoder


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export the model and the encoder.

    Raises:
        BenchError: the run has no encoder.
    """
    if case.config.encoder is None:
        raise BenchError("encoder-onnx: this run trained its rows without an encoder; leave it out")
    module = _Encoding(load_model(case), case)
    prompt_ids = list(range(module.n_prompt))
    export_onnx(module, folder / MODEL, Inputs(case).names, "picked", {PROMPT_IDS: torch.tensor(prompt_ids)})
    Exported(setting=f"fp32, opset {OPSET}", gives="picked", prompt_ids=prompt_ids).write(folder)


class _Encoding(nn.Module):
    """The encoder, the model, and of its output what is read."""

    def __init__(self, model: Any, case: Case) -> None:
        super().__init__()
        kind = case.config.encoder
        assert kind is not None, "checked by prepare"
        weights = {name: torch.from_numpy(array) for name, array in case.encoder_weights().items()}
        self.n_prompt, width = weights["embeddings"].shape
        self.encoder = PromptEncoder(kind, self.n_prompt, width, scale=1.0).requires_grad_(False)
        self.encoder.load_state_dict(weights)
        self.model, self._vocab, self._reader = model, case.config.vocab, Reader(case)
        self.register_buffer("mask_row", torch.from_numpy(case.prompt_embeddings[self.n_prompt :]))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        soft_token_ids: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        given = {"attention_mask": attention_mask, "inputs_embeds": self._embed(input_ids, soft_token_ids)}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        if self._reader.output != "logits":
            states: Tensor = self._reader.pick(self.model(**given)[self._reader.output], input_ids)
            return states

        def pick(module: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = self._reader.pick(output.last_hidden_state, input_ids)[:, None]
            return output

        # The language-model head, whatever it is in this architecture, then sees one position.
        with self.model.base_model.register_forward_hook(pick):
            logits: Tensor = self.model(**given).logits
        return logits[:, 0]

    def _embed(self, input_ids: Tensor, soft_token_ids: Tensor) -> Tensor:
        chosen = {"embeddings": self.encoder.embeddings[soft_token_ids]}
        rows = torch.cat([torch.func.functional_call(self.encoder, chosen, ()), self.get_buffer("mask_row")])
        is_prompt = input_ids >= self._vocab
        words = self.model.get_input_embeddings()(torch.where(is_prompt, 0, input_ids))
        return torch.where(is_prompt[..., None], rows[torch.where(is_prompt, input_ids - self._vocab, 0)], words)
