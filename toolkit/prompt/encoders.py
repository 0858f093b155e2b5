"""The prompt encoders: virtual tokens -> rows [p, e], or keys and values; knows nothing of templates or backbones.

Source: Liu et al. 2021, arXiv:2103.10385, section 3.2: h_i = MLP([LSTM forward : LSTM backward]) over free
embeddings. The LSTM has e/2 units a direction, as in THUDM/P-tuning@f4225d4 LAMA/p_tuning/prompt_encoder.py (its
few-shot code uses e and an MLP twice as wide); no dropout, as there.
"""

from typing import Literal

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
        self.prefix_kv = nn.Parameter(start.clone(), requires_grad=kind == "none")
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
            return self.prefix_kv
        layers, two, one, heads, n_prefix, head_width = self.prefix_kv.shape
        flat: Tensor = self.mlp(self.embeddings)
        return self.prefix_kv + flat.view(n_prefix, layers, two, one, heads, head_width).permute(1, 2, 3, 4, 0, 5)
