"""The prompt encoders: virtual tokens -> rows [p, e], or keys and values; knows nothing of templates or backbones.

Source: Liu et al. 2021, arXiv:2103.10385, section 3.2: h_i = MLP([LSTM forward : LSTM backward]) over free
embeddings. The LSTM has e/2 units a direction, as in THUDM/P-tuning@f4225d4 LAMA/p_tuning/prompt_encoder.py (its
few-shot code uses e and an MLP twice as wide); no dropout, as there.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.methods import EncoderKind


class PromptEncoder(nn.Module):
    """Makes the rows of all virtual tokens, from nothing but its own weights.

    Args:
        kind: "lstm": two-layer bidirectional LSTM, then Linear-ReLU-Linear; "mlp": the second part alone;
            "none": the rows themselves are trained.
        n_prompt: number of virtual tokens p, at least 1.
        embedding_width: floats per embedding row e, even.
        scale: standard deviation that the rows start with; the backbone's own embeddings', so that they start
            where the language model expects its input.

    Raises:
        TrainError: the LSTM on an odd embedding width.
    """

    def __init__(self, kind: EncoderKind, n_prompt: int, embedding_width: int, *, scale: float) -> None:
        super().__init__()
        if kind == "lstm" and embedding_width % 2:
            raise TrainError(
                f"encoder lstm: embedding width {embedding_width} is odd, need an even one; use --encoder mlp"
            )
        self.embeddings = nn.Parameter(torch.randn(n_prompt, embedding_width) * (scale if kind == "none" else 1.0))
        self.lstm = (
            nn.LSTM(embedding_width, embedding_width // 2, num_layers=2, bidirectional=True, batch_first=True)
            if kind == "lstm"
            else None
        )
        self.mlp = (
            None
            if kind == "none"
            else nn.Sequential(
                nn.Linear(embedding_width, embedding_width), nn.ReLU(), nn.Linear(embedding_width, embedding_width)
            )
        )

    def forward(self) -> Tensor:
        """Make the rows, float [p, e]."""
        rows: Tensor = self.embeddings
        if self.lstm is not None:
            rows = self.lstm(rows[None])[0][0]
        return rows if self.mlp is None else self.mlp(rows)


class PrefixEncoder(nn.Module):
    """Makes keys and values of every layer, as if so many tokens stood before the row's first.

    Source: "none": Liu et al. 2022, arXiv:2110.07602, section 3.2; "mlp": Li and Liang 2021, arXiv:2101.00190,
    section 4.3, whose reparameterisation is a table of embeddings and a tanh network, dropped after training. Here the
    network makes what is added to the start, at first nothing: keys near 0 draw attention from every token, and on
    SmolLM2 nothing was learned from there.

    Args:
        kind: "none": the keys and values themselves are trained; "mlp": they are made by a network.
        start: float [l, 2, 1, k, n, d], which both start from: those that real words leave.
        width: of the network, floats.
    """

    def __init__(self, kind: Literal["mlp", "none"], start: Tensor, *, width: int) -> None:
        super().__init__()
        self.states = nn.Parameter(start.clone(), requires_grad=kind == "none")
        n_prefix = start.shape[4]
        self.embeddings = None if kind == "none" else nn.Parameter(torch.randn(n_prefix, width))
        self.mlp = None
        if kind == "mlp":
            last = nn.Linear(width, start.numel() // n_prefix)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh(), last)

    def forward(self) -> Tensor:
        """Make the keys and values, float [l, 2, 1, k, n, d]."""
        if self.mlp is None:
            return self.states
        layers, two, one, heads, n_prefix, head_width = self.states.shape
        flat: Tensor = self.mlp(self.embeddings)
        return self.states + flat.view(n_prefix, layers, two, one, heads, head_width).permute(1, 2, 3, 4, 0, 5)


class OwnRows(Protocol):
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
        own: OwnRows,
        head: nn.Linear | None,
        log_prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix = prefix
        self.head = head
        self.log_prior = log_prior
        self._own = own

    def prompt_rows(self) -> Tensor:
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
