"""The task tensors as a torch module: prompt embeddings, keys and values, and label weights, trained or fixed."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.prompt.encoders import PrefixEncoder, PromptEncoder


class BackboneTensors(Protocol):
    """Tensors of the backbone that a task uses; read at every step, since the backbone may be trained too."""

    def mask(self) -> Tensor:
        """Return the [MASK] embedding for the mask slot, float [1, e]; without a mask slot, float [0, e]."""

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return label weights, float [c, h], and biases, float [c]."""


class SoftPrompt(nn.Module):
    """The task tensors: prompt embeddings, keys and values, and label weights, trained or fixed.

    Args:
        encoder: computes the prompt embeddings; None if virtual tokens have none.
        prefix: computes past keys and values; None if none are trained.
        backbone_tensors: tensors of the backbone that the task uses.
        head: a linear head to train instead of label words.
        log_prior: float [c], subtracted from the logits; None: nothing is subtracted.
    """

    def __init__(
        self,
        *,
        encoder: PromptEncoder | None,
        prefix: PrefixEncoder | None,
        backbone_tensors: BackboneTensors,
        head: nn.Linear | None,
        log_prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.head = head
        self.log_prior = log_prior
        self._backbone_tensors = backbone_tensors

    def prompt_embeddings(self) -> Tensor:
        """Compute all embeddings past the vocabulary, float [p, e]: virtual tokens, then the mask slot."""
        mask = self._backbone_tensors.mask()
        if self.encoder is None:
            # Gather fails on an empty table, so it gets one embedding of zeros, to which no id points.
            return mask if len(mask) else mask.new_zeros(1, mask.shape[1])
        return torch.cat([self.encoder(), mask])

    def labels(self) -> tuple[Tensor, Tensor]:
        """Compute label weights, float [c, h], and biases, float [c]."""
        if self.head is not None:
            return self.head.weight, self.head.bias
        weights, bias = self._backbone_tensors.labels()
        return weights, bias if self.log_prior is None else bias - self.log_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBackboneTensors:
    """Tensors of a trained backbone, read at every step; see `BackboneTensors`.

    Attributes:
        backbone: the backbone; its trained parts are on the device of `table`, the others may be on the CPU.
        table: embedding table of the backbone.
        mask_id: id of the [MASK] token; None: no mask slot.
        word_ids: token ids of the words of each label; empty for a linear head.
    """

    backbone: Backbone
    table: nn.Embedding
    mask_id: int | None
    word_ids: list[list[int]]

    def mask(self) -> Tensor:
        """Return the embedding of the mask slot, float [1 or 0, e]."""
        return self.table.weight[[] if self.mask_id is None else [self.mask_id]]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return label weights, float [c, h], and biases, float [c]."""
        weights, bias = self.backbone.label_weights(self.word_ids)
        return weights.to(self.table.weight.device), bias.to(self.table.weight.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenBackboneTensors:
    """Tensors of a frozen backbone, read once, since there may be as many labels as words in the vocabulary."""

    mask_embedding: Tensor
    label_weights: tuple[Tensor, Tensor]

    def mask(self) -> Tensor:
        """Return the embedding of the mask slot, float [1 or 0, e]."""
        return self.mask_embedding

    def labels(self) -> tuple[Tensor, Tensor]:
        """Return label weights, float [c, h], and biases, float [c]."""
        return self.label_weights
