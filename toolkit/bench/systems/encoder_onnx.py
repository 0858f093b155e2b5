"""The model with the prompt encoder inside the graph, as PaddleNLP exports its prompt models.

Source: PaddleNLP's SoftTemplate and export, paddlenlp/prompt/template.py. The prompt's ids are an input, so constant
folding cannot remove the encoder: each call computes the prompt embeddings. The logits are of the whole vocabulary at
one position.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.graph import MODEL, PROMPT_IDS, GraphInfo
from ptexport.toolkit.bench.systems.hf import load_model
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.systems.plain_onnx import OPSET, export_onnx
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.prompt.encoders import PromptEncoder


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export the model and the encoder.

    Raises:
        BenchError: the run has no encoder.
    """
    if case.config.encoder is None:
        raise BenchError("encoder-onnx: this run trained its prompt without an encoder, need one; leave it out")
    module = _WithEncoder(load_model(case), case)
    prompt_ids = list(range(module.n_prompt))
    export_onnx(module, folder / MODEL, Inputs(case).names, "pooled", {PROMPT_IDS: torch.tensor(prompt_ids)})
    GraphInfo(setting=f"fp32, opset {OPSET}", output="pooled", prompt_ids=prompt_ids).write(folder)


class _WithEncoder(nn.Module):
    """The encoder, the model, and the pooling of its output."""

    def __init__(self, model: Any, case: Case) -> None:
        super().__init__()
        kind = case.config.encoder
        assert kind is not None, "checked by prepare"
        weights = {name: torch.from_numpy(array) for name, array in case.encoder_weights().items()}
        self.n_prompt, width = weights["embeddings"].shape
        self.encoder = PromptEncoder(kind, self.n_prompt, width, scale=1.0).requires_grad_(False)
        self.encoder.load_state_dict(weights)
        self.model, self._vocab, self._head = model, case.config.vocab, LabelHead(case)
        self.register_buffer("mask_embedding", torch.from_numpy(case.prompt_embeddings[self.n_prompt :]))

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
        if self._head.output != "logits":
            states: Tensor = self._head.pool(self.model(**given)[self._head.output], input_ids)
            return states

        def pool(module: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = self._head.pool(output.last_hidden_state, input_ids)[:, None]
            return output

        # The language-model head of any architecture then runs at one position.
        with self.model.base_model.register_forward_hook(pool):
            logits: Tensor = self.model(**given).logits
        return logits[:, 0]

    def _embed(self, input_ids: Tensor, soft_token_ids: Tensor) -> Tensor:
        embeddings = {"embeddings": self.encoder.embeddings[soft_token_ids]}
        prompt = torch.cat(
            [torch.func.functional_call(self.encoder, embeddings, ()), self.get_buffer("mask_embedding")]
        )
        is_prompt = input_ids >= self._vocab
        words = self.model.get_input_embeddings()(torch.where(is_prompt, 0, input_ids))
        return torch.where(is_prompt[..., None], prompt[torch.where(is_prompt, input_ids - self._vocab, 0)], words)
