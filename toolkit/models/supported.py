"""A loaded model -> the features that are not supported; runs no forward pass.

A model that loads, but uses embeddings, positions or masks differently from this package, would give wrong logits
without an error.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ptexport.runtime.errors import ModelError

_TESTED_LAYERS = {"modernbert": {"full_attention", "sliding_attention"}}
"""Supported kinds of layers, by architecture tested with rows longer than its windows; others: full attention only."""

_BOUNDING = {"sliding_window", "use_sliding_window", "max_window_layers"}
"""Window settings that leave attention full on rows up to `longest_row`; other window settings are not supported."""


def check_supported(model: PreTrainedModel, where: str) -> None:
    """Check that a model has only supported features.

    Args:
        model: the loaded model.
        where: name of the model, for messages.

    Raises:
        ModelError: the model has other features (the message names them).
    """
    config = model.config
    accepted = inspect.signature(model.base_model.forward).parameters
    for argument in ("inputs_embeds", "position_ids", "attention_mask"):
        if argument not in accepted:
            raise ModelError(f"{where}: {config.model_type} takes no {argument}; not supported")
    if getattr(config, "max_position_embeddings", None) is None:
        raise ModelError(f"{where}: {config.model_type} has no max_position_embeddings; not supported")
    features = [*_settings(config), *_layers(config), *_rotations(model), *_embeddings(model.get_input_embeddings())]
    if features:
        raise ModelError(f"{where}: {config.model_type} has {', '.join(features)}; not supported")


def longest_row(config: Any, first_position: int) -> int:
    """Return the maximum tokens per row.

    If every layer has a sliding window (Mistral), it is at most the window, where attention is full.

    Args:
        config: configuration of the model.
        first_position: position id of the first token.
    """
    positions: int = config.max_position_embeddings - first_position
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        return positions
    return min(positions, getattr(config, "sliding_window", None) or positions)


def _settings(config: Any) -> list[str]:
    """Find logit caps, windows and experts by setting name, which Transformers keeps consistent across models."""
    features = [
        f"{name} {value}"
        for name, value in config.to_dict().items()
        if value
        and not name.startswith("_")
        and ("softcap" in name or "experts" in name or ("window" in name and name not in _BOUNDING))
    ]
    # BigBird's attention is full on short rows, so neither the trace nor most parity rows would show the difference.
    return features + ["block-sparse attention"] * (getattr(config, "attention_type", None) == "block_sparse")


def _layers(config: Any) -> list[str]:
    tested = _TESTED_LAYERS.get(config.model_type, {"full_attention"})
    kinds = set(getattr(config, "layer_types", None) or []) - tested
    return [f"layers of {kind.replace('_', ' ')}" for kind in sorted(kinds)]


def _rotations(model: nn.Module) -> list[str]:
    """Find rotary positions that depend on the longest row of this batch or of earlier batches."""
    kinds: set[str] = set()
    for module in model.modules():
        kind = getattr(module, "rope_type", None) or {}  # a dictionary if kinds of layers differ
        kinds |= {kind} if isinstance(kind, str) else set(kind.values())
    return [f"{kind} rotary positions" for kind in sorted(kinds) if "dynamic" in kind or kind == "longrope"]


def _embeddings(table: nn.Embedding) -> list[str]:
    """Find an embedding table that scales its rows (Gemma); prompt embeddings would not be scaled."""
    ids = torch.arange(table.num_embeddings // 2, table.num_embeddings)[:1]
    return [] if torch.equal(table(ids), table.weight[ids]) else ["embeddings that are scaled"]
