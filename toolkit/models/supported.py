"""A loaded model -> nothing, or the features by whose names it is refused; runs no layer of it.

A model that loads but reads embeddings, positions or masks in another way than this package does would give answers
that are wrong rather than absent.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptexport.runtime.errors import ModelError

_TESTED_LAYERS = {"modernbert": {"full_attention", "sliding_attention"}}
"""Kinds of layers by architecture, where rows longer than their windows are tested; elsewhere full attention alone."""

_BOUNDING = {"sliding_window", "use_sliding_window", "max_window_layers"}
"""Settings named for windows that leave attention full on rows of `longest_row`; any other is refused."""


def check_supported(model: PreTrainedModel, where: str) -> None:
    """Refuse a model with features that this package does not know, or has not tested.

    Args:
        model: as loaded.
        where: the model, for messages.

    Raises:
        ModelError: names them.
    """
    config = model.config
    accepted = inspect.signature(model.base_model.forward).parameters
    for argument in ("inputs_embeds", "position_ids", "attention_mask"):
        if argument not in accepted:
            raise ModelError(f"{where}: {config.model_type} takes no {argument}; not supported")
    if getattr(config, "max_position_embeddings", None) is None:
        raise ModelError(f"{where}: {config.model_type} does not say how many positions it takes; not supported")
    features = [*_settings(config), *_layers(config), *_rotations(model), *_embeddings(model.get_input_embeddings())]
    if features:
        raise ModelError(f"{where}: {config.model_type} has {', '.join(features)}; not supported")


def longest_row(config: Any, first_position: int) -> int:
    """Count the tokens that a row may have.

    Where every layer sees a window (Mistral), attention is full on rows as long as that.

    Args:
        config: the model's.
        first_position: position id of the first token.
    """
    positions: int = config.max_position_embeddings - first_position
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        return positions
    return min(positions, getattr(config, "sliding_window", None) or positions)


def _settings(config: Any) -> list[str]:
    """Find capped logits, windows and experts by their names, which Transformers keeps alike across models."""
    features = [
        f"{name} {value}"
        for name, value in config.to_dict().items()
        if value
        and not name.startswith("_")
        and ("softcap" in name or "experts" in name or ("window" in name and name not in _BOUNDING))
    ]
    # BigBird's attention is full on short rows, such as those of a trace and most of those that are compared.
    return features + ["block-sparse attention"] * (getattr(config, "attention_type", None) == "block_sparse")


def _layers(config: Any) -> list[str]:
    tested = _TESTED_LAYERS.get(config.model_type, {"full_attention"})
    kinds = set(getattr(config, "layer_types", None) or []) - tested
    return [f"layers of {kind.replace('_', ' ')}" for kind in sorted(kinds)]


def _rotations(model: nn.Module) -> list[str]:
    """Find rotary positions that depend on the longest row of the batch, or of all batches before."""
    kinds: set[str] = set()
    for module in model.modules():
        kind = getattr(module, "rope_type", None) or {}  # by kind of layer, where those differ
        kinds |= {kind} if isinstance(kind, str) else set(kind.values())
    return [f"{kind} rotary positions" for kind in sorted(kinds) if "dynamic" in kind or kind == "longrope"]


def _embeddings(table: nn.Embedding) -> list[str]:
    """Find a table whose rows are not what the layers get (Gemma): prompt rows would not be like them."""
    ids = torch.arange(table.num_embeddings // 2, table.num_embeddings)[:1]
    return [] if torch.equal(table(ids), table.weight[ids]) else ["embeddings that are scaled"]
