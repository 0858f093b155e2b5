"""Ids + rows + label rows -> logits: the one computation that is trained, evaluated and traced.

Everything a task brings is an argument, so that one trace serves every task on a backbone. Shapes:
`b` batch, `s` sequence, `p` rows past the vocabulary, `e` embedding width, `h` width read by the head, `c` labels,
`n` folded leading tokens, `l` layers, `k` key-value heads, `d` head width.

Knows nothing of templates, labels or files.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import ModelError


class PromptClassifier(nn.Module):
    """A frozen backbone that looks virtual tokens up in rows it is given and scores labels at one position.

    Args:
        model: the language model (for label words) or the bare encoder (for a linear head); not changed.
        pooling: which state becomes logits. "mask" is the token whose id is that of the last row.
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        self.base = model.base_model
        self.table = model.get_input_embeddings()
        self.vocab = self.table.num_embeddings
        self.pooling = pooling
        self.token_types = (
            "token_type_ids" in inspect.signature(self.base.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 1
        )
        self.first_position = _first_position(self.base)
        self.head = None if model.base_model is model else _head_alone(model)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_embeddings: Tensor,
        label_weights: Tensor,
        label_bias: Tensor,
        prefix_kv: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        prefix_mask: Tensor | None = None,
    ) -> Tensor:
        """Score labels.

        Args:
            input_ids: int64 [b, s]; an id from `vocab` on is a row of `prompt_embeddings`; others past it fail.
            attention_mask: int64 [b, s]; 0 on padding, on either side; at least one 1 a row.
            prompt_embeddings: float [p, e].
            label_weights: float [c, h].
            label_bias: float [c].
            prefix_kv: float [l, 2, 1 or b, k, n, d]: keys and values of the tokens before `input_ids`.
            token_type_ids: int64 [b, s].
            prefix_mask: int64 [b, n]; 0 where a row has fewer of these, which must be on the left. None: none has.

        Returns:
            Logits, float [b, c].
        """
        hidden_states = self.hidden_states(
            input_ids, attention_mask, prompt_embeddings, prefix_kv, token_type_ids, prefix_mask
        )
        state = self.pick(hidden_states, input_ids, attention_mask, prompt_embeddings.shape[0])
        return self.transform(state[:, None])[:, 0] @ label_weights.T + label_bias

    def prefix_kv(self, leading_ids: list[int], prompt_embeddings: Tensor) -> Tensor:
        """Compute the keys and values of a leading prompt, float [l, 2, 1, k, n, d]; n may be 0.

        Raises:
            ModelError: the backbone keeps other state than one full key and value tensor per layer.
        """
        ids = torch.tensor([leading_ids or [0]], device=prompt_embeddings.device)
        return self.keys_and_values(ids, prompt_embeddings, None)[..., : len(leading_ids), :]

    def keys_and_values(self, input_ids: Tensor, prompt_embeddings: Tensor, prefix_kv: Tensor | None) -> Tensor:
        """Compute the keys and values of rows padded on the right, those before them included.

        Args:
            input_ids: int64 [b, s]; since no token sees what follows, padding may be any id.
            prompt_embeddings: float [p, e].
            prefix_kv: float [l, 2, 1, k, n, d], of the same tokens before each row.

        Returns:
            float [l, 2, b, k, n + s, d].

        Raises:
            ModelError: the backbone keeps other state than one full key and value tensor per layer.
        """
        n_leading = 0 if prefix_kv is None else prefix_kv.shape[4]
        positions = self.first_position + n_leading + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        cache = DynamicCache() if prefix_kv is None else cache_of(prefix_kv, len(input_ids))
        self.base(inputs_embeds=self.embed(input_ids, prompt_embeddings), position_ids=positions, past_key_values=cache)
        if not cache.layers:
            kind = self.base.config.model_type
            raise ModelError(f"{kind}: keeps no keys and values, so that none can stand before a row; not supported")
        try:
            return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
        except (AttributeError, TypeError, RuntimeError) as e:
            raise ModelError(f"{type(self.base).__name__}: its layers keep different state ({e}); not supported") from e

    def transform(self, hidden_states: Tensor) -> Tensor:
        """Do what the model does between hidden states and its vocabulary: float [b, t, h] -> [b, t, h]."""
        if self.head is None:
            return hidden_states
        transformed: Tensor = self.head(inputs_embeds=hidden_states).logits
        return transformed

    def embed(self, input_ids: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Look ids up in both tables, int64 [b, s] -> float [b, s, e]."""
        # An id below 0 becomes a large negative index of the small table: it fails there too, as ONNX wants it to.
        is_text = (input_ids >= 0) & (input_ids < self.vocab)
        text = self.table(torch.where(is_text, input_ids, 0))
        prompt = functional.embedding(torch.where(is_text, 0, input_ids - self.vocab), prompt_embeddings)
        return torch.where(is_text[..., None], text, prompt)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_embeddings: Tensor,
        prefix_kv: Tensor | None,
        token_type_ids: Tensor | None,
        prefix_mask: Tensor | None,
    ) -> Tensor:
        """Run the backbone, float [b, s, h]. Positions count real tokens, so padding may be on either side."""
        batch = input_ids.shape[0]
        # Counted in float32, exact here: TensorRT's parser takes no cumulative sum of integers.
        counted = attention_mask.to(torch.float32).cumsum(1).to(torch.int64)
        positions = (counted - 1) * attention_mask + self.first_position
        extra: dict[str, Any] = {}
        if prefix_kv is not None:
            if prefix_mask is None:
                prefix_mask = attention_mask.new_ones(batch, prefix_kv.shape[4])
                positions = positions + prefix_kv.shape[4]
            else:
                positions = positions + prefix_mask.sum(1, keepdim=True)
            attention_mask = torch.cat([prefix_mask, attention_mask], dim=1)
            extra["past_key_values"] = cache_of(prefix_kv, batch)
        if token_type_ids is not None:
            extra["token_type_ids"] = token_type_ids
        hidden_states: Tensor = self.base(
            inputs_embeds=self.embed(input_ids, prompt_embeddings),
            attention_mask=attention_mask,
            position_ids=positions,
            **extra,
        ).last_hidden_state
        return hidden_states

    def pick(self, hidden_states: Tensor, input_ids: Tensor, attention_mask: Tensor, n_prompt: int) -> Tensor:
        """Pick or average hidden states, float [b, h]."""
        if self.pooling == "mean":
            weights = attention_mask[..., None].to(hidden_states.dtype)
            return (hidden_states * weights).sum(1) / weights.sum(1)
        if self.pooling == "mask":
            score = input_ids == self.vocab + n_prompt - 1
        elif self.pooling in ("first", "pooled"):
            score = attention_mask
        else:
            score = attention_mask * torch.arange(attention_mask.shape[1], device=hidden_states.device)
        index = score.to(torch.int32).argmax(1)  # ONNX Runtime before 1.20 has no ArgMax of int64
        state = hidden_states.gather(1, index[:, None, None].expand(-1, 1, hidden_states.shape[2]))
        # The pooler takes the first of the hidden states it is given.
        return self.base.pooler(state) if self.pooling == "pooled" else state[:, 0]


def cache_of(prefix_kv: Tensor, batch: int) -> DynamicCache:
    """Hand keys and values, float [l, 2, 1 or b, k, n, d], to a model."""
    return DynamicCache([(layer[0], layer[1]) for layer in prefix_kv.expand(-1, -1, batch, -1, -1, -1).unbind(0)])


class _Given(nn.Module):
    """Stands where the backbone was and returns the hidden states it is given."""

    def forward(self, input_ids: None = None, *, inputs_embeds: Tensor, **_: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _head_alone(model: PreTrainedModel) -> nn.Module:
    """Copy a language model without its backbone and its vocabulary projection, sharing all weights.

    What is left is the model's own code from hidden state to the vector that label rows are multiplied with
    (nothing on Llama; dense, activation and layer norm on BERT), runnable at one position.
    """
    kept = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    replaced = {id(model.base_model): _Given(), id(model.get_output_embeddings()): nn.Identity()}
    head: nn.Module = copy.deepcopy(model, {**kept, **replaced})
    return head


def _first_position(base: nn.Module) -> int:
    """Position id of the first token: RoBERTa's family starts after its padding index."""
    for name, module in base.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
