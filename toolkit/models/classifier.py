"""Ids + task tensors -> logits: the same computation is trained, evaluated and traced.

The task tensors are arguments, so that one trace serves every task on a backbone. Shapes: `b` batch, `s` sequence,
`p` embeddings past the vocabulary, `e` embedding width, `h` width of the hidden state at the head, `c` labels,
`n` tokens of the prefix, `l` layers, `k` key-value heads, `d` head width.
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
    """A backbone with a second embedding table for virtual tokens and label logits at one position.

    Args:
        model: the language model (for label words), its base model (for a linear head), or a classifier without its
            last linear layer (for its own pooling); not changed.
        pooling: hidden state that becomes logits. "mask" is the token with the id of the last prompt embedding;
            "pooled" and "pooled-mean" are the first one and the mean, through the layers of the model's own classifier.
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
        """Compute the logits of the labels.

        Args:
            input_ids: int64 [b, s]; ids from `vocab` on index `prompt_embeddings`; ids out of range fail.
            attention_mask: int64 [b, s]; 0 on padding, on either side; at least one 1 per row.
            prompt_embeddings: float [p, e].
            label_weights: float [c, h].
            label_bias: float [c].
            prefix_kv: float [l, 2, 1 or b, k, n, d], past keys and values.
            token_type_ids: int64 [b, s].
            prefix_mask: int64 [b, n]; 0 on padding of `prefix_kv`, on the left. None: no padding.

        Returns:
            Logits, float [b, c].
        """
        hidden_states = self.hidden_states(
            input_ids, attention_mask, prompt_embeddings, prefix_kv, token_type_ids, prefix_mask
        )
        state = self.pick(hidden_states, input_ids, attention_mask, prompt_embeddings.shape[0])
        return self.transform(state[:, None])[:, 0] @ label_weights.T + label_bias

    def prefix_kv(self, leading_ids: list[int], prompt_embeddings: Tensor) -> Tensor:
        """Compute the keys and values of leading tokens, float [l, 2, 1, k, n, d]; n may be 0.

        Raises:
            ModelError: the KV cache of the backbone is not one full key and value tensor per layer.
        """
        ids = torch.tensor([leading_ids or [0]], device=prompt_embeddings.device)
        return self.keys_and_values(ids, prompt_embeddings, None)[..., : len(leading_ids), :]

    def keys_and_values(self, input_ids: Tensor, prompt_embeddings: Tensor, prefix_kv: Tensor | None) -> Tensor:
        """Compute the keys and values of rows, including the prefix.

        Args:
            input_ids: int64 [b, s], padded on the right with any id, since attention sees only earlier tokens.
            prompt_embeddings: float [p, e].
            prefix_kv: float [l, 2, 1, k, n, d], past keys and values, the same for each row.

        Returns:
            float [l, 2, b, k, n + s, d].

        Raises:
            ModelError: the KV cache of the backbone is not one full key and value tensor per layer.
        """
        n_prefix = 0 if prefix_kv is None else prefix_kv.shape[4]
        positions = self.first_position + n_prefix + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        cache = DynamicCache() if prefix_kv is None else cache_of(prefix_kv, len(input_ids))
        self.base(inputs_embeds=self.embed(input_ids, prompt_embeddings), position_ids=positions, past_key_values=cache)
        if not cache.layers:
            kind = self.base.config.model_type
            raise ModelError(f"{kind}: has no KV cache, so a prefix of keys and values is not possible; not supported")
        try:
            return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
        except (AttributeError, TypeError, RuntimeError) as e:
            raise ModelError(
                f"{type(self.base).__name__}: its layers cache different tensors ({e}); not supported"
            ) from e

    def transform(self, hidden_states: Tensor) -> Tensor:
        """Run the part of the head before its last linear layer: float [b, t, h] -> [b, t, h].

        `t` is 1 for the model's own pooling, which takes the first position.
        """
        own_pooling = self.pooling in ("pooled", "pooled-mean")
        if self.head is None:
            return _pooled(self.base, hidden_states)[:, None] if own_pooling else hidden_states
        transformed: Tensor = self.head(inputs_embeds=hidden_states).logits
        return transformed[:, None] if own_pooling else transformed

    def embed(self, input_ids: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Look up ids in both embedding tables, int64 [b, s] -> float [b, s, e]."""
        # An id below 0 becomes a large negative index of the small table, and fails there, as in ONNX.
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
        """Run the backbone: float [b, s, h]. Position ids count real tokens, so padding may be on either side."""
        batch = input_ids.shape[0]
        # In float32, which is exact here: TensorRT's parser does not support CumSum of integers.
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
        """Select or average hidden states: float [b, h]."""
        if self.pooling in ("mean", "pooled-mean"):
            weights = attention_mask[..., None].to(hidden_states.dtype)
            return (hidden_states * weights).sum(1) / weights.sum(1)
        length = attention_mask.shape[1]
        if self.pooling == "mask":
            score = input_ids == self.vocab + n_prompt - 1
        elif self.pooling in ("first", "pooled"):
            score = attention_mask * torch.arange(length, 0, -1, device=hidden_states.device)
        else:
            score = attention_mask * torch.arange(1, length + 1, device=hidden_states.device)
        index = first_of_largest(score)
        return hidden_states.gather(1, index[:, None, None].expand(-1, 1, hidden_states.shape[2]))[:, 0]


def first_of_largest(score: Tensor) -> Tensor:
    """Return the index of the largest score of each row, int [.., s] -> int64 [..]; exact for scores below 2 ** 24.

    In float32, since ONNX Runtime's CUDA provider has no ArgMax of integers, and takes no CUDA graph with a node on the
    CPU. Callers give each row one largest score: which of several equal ones a GPU returns is not defined.
    """
    return score.to(torch.float32).argmax(-1)


def cache_of(prefix_kv: Tensor, batch: int) -> DynamicCache:
    """Convert keys and values, float [l, 2, 1 or b, k, n, d], to a cache of Transformers."""
    return DynamicCache([(layer[0], layer[1]) for layer in prefix_kv.expand(-1, -1, batch, -1, -1, -1).unbind(0)])


def _pooled(base: Any, hidden_states: Tensor) -> Tensor:
    """Run BERT's pooler, which has its activation inside, or ALBERT's, which has it outside: [b, t, h] -> [b, h]."""
    activation = getattr(base, "pooler_activation", None)
    pooled: Tensor = base.pooler(hidden_states) if activation is None else activation(base.pooler(hidden_states[:, 0]))
    return pooled


class _Given(nn.Module):
    """Replaces the backbone and returns the hidden states that it is given."""

    def forward(self, input_ids: None = None, *, inputs_embeds: Tensor, **_: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _head_alone(model: PreTrainedModel) -> nn.Module:
    """Copy a model without its backbone and its vocabulary projection, if it has one; the copy shares all weights.

    The copy maps a hidden state to the vector that is multiplied with the label weights: the identity on Llama; dense,
    activation and layer norm on BERT; dense and activation for RoBERTa's classifier. It runs at one position.
    """
    kept = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    replaced: dict[int, nn.Module] = {id(model.base_model): _Given()}
    projection = model.get_output_embeddings()
    if projection is not None:
        replaced[id(projection)] = nn.Identity()
    head: nn.Module = copy.deepcopy(model, {**kept, **replaced})
    return head


def _first_position(base: nn.Module) -> int:
    """Return the position id of the first token; RoBERTa-like models start after the padding index."""
    for name, module in base.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
