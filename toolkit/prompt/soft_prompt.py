"""Everything that a task brings to the classifier, trained or fixed."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.prompt.encoders import PrefixEncoder, PromptEncoder


class BackboneTensors(Protocol):
    """Rows of a backbone's own tables that a task reads; read each time, since the backbone may be trained too."""

    def mask(self) -> Tensor:
        """The [MASK] embedding as the mask slot's row, float [1, e]; without a slot, float [0, e]."""

    def labels(self) -> tuple[Tensor, Tensor]:
        """Label rows, float [c, h], and biases, float [c]."""


class SoftPrompt(nn.Module):
    """Everything that a task brings to the classifier: rows, keys and values, and label rows, trained or fixed.

    Args:
        encoder: makes the virtual tokens' rows; None where they have none.
        prefix: makes keys and values before everything; None where there are none to be trained.
        own: what is read from the backbone.
        head: a linear head to be trained, in place of label words.
        log_prior: float [c], taken from the logits; None: nothing is.
    """

    def __init__(
        self,
        *,
        encoder: PromptEncoder | None,
        prefix: PrefixEncoder | None,
        own: BackboneTensors,
        head: nn.Linear | None,
        log_prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.head = head
        self.log_prior = log_prior
        self._own = own

    def prompt_embeddings(self) -> Tensor:
        """Make all rows past the vocabulary, float [p, e]: virtual tokens, then the mask slot."""
        mask = self._own.mask()
        if self.encoder is None:
            # A table of no rows cannot be looked up in, so one of zeros stands in; no id points to it.
            return mask if len(mask) else mask.new_zeros(1, mask.shape[1])
        return torch.cat([self.encoder(), mask])

    def labels(self) -> tuple[Tensor, Tensor]:
        """Make label rows, float [c, h], and biases, float [c]."""
        if self.head is not None:
            return self.head.weight, self.head.bias
        rows, bias = self._own.labels()
        return rows, bias if self.log_prior is None else bias - self.log_prior


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBackboneTensors:
    """The rows of a backbone's own tables that a task reads; see `BackboneTensors`.

    Attributes:
        backbone: on the CPU or, as far as it is trained, on the device of `table`.
        table: its embeddings.
        mask_id: the [MASK] token's id; None: no mask slot.
        word_ids: of each label's words; none for a linear head.
    """

    backbone: Backbone
    table: nn.Embedding
    mask_id: int | None
    word_ids: list[list[int]]

    def mask(self) -> Tensor:
        """The mask slot's row, float [1 or 0, e]."""
        return self.table.weight[[] if self.mask_id is None else [self.mask_id]]

    def labels(self) -> tuple[Tensor, Tensor]:
        """Label rows and biases, float [c, h] and [c]."""
        rows, bias = self.backbone.label_weights(self.word_ids)
        return rows.to(self.table.weight.device), bias.to(self.table.weight.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenBackboneTensors:
    """The same of a backbone that is frozen, read once: labels may be as many as its vocabulary has words."""

    mask_row: Tensor
    label_weights: tuple[Tensor, Tensor]

    def mask(self) -> Tensor:
        """The mask slot's row, float [1 or 0, e]."""
        return self.mask_row

    def labels(self) -> tuple[Tensor, Tensor]:
        """Label rows and biases, float [c, h] and [c]."""
        return self.label_weights
