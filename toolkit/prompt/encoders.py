"""Prompt encoders: trained weights -> prompt embeddings [p, e], or keys and values.

Source: Liu et al. 2021, arXiv:2103.10385, section 3.2: h_i = MLP([LSTM forward : LSTM backward]) over free
embeddings. The LSTM has e/2 units per direction and no dropout, as in THUDM/P-tuning@f4225d4
LAMA/p_tuning/prompt_encoder.py (the few-shot code there uses e units and an MLP twice as wide).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.methods import EncoderKind


class PromptEncoder(nn.Module):
    """Computes the prompt embeddings of all virtual tokens from its weights.

    Args:
        kind: "lstm": two-layer bidirectional LSTM, then Linear-ReLU-Linear; "mlp": Linear-ReLU-Linear alone;
            "none": the prompt embeddings are trained directly.
        n_prompt: number of virtual tokens p, at least 1.
        embedding_width: floats per embedding e; even for the LSTM.
        scale: initial standard deviation of the prompt embeddings with "none"; use that of the backbone's embeddings,
            so that training starts in the range the language model expects.

    Raises:
        TrainError: an LSTM with an odd embedding width.
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
        """Compute the prompt embeddings, float [p, e]."""
        embeddings: Tensor = self.embeddings
        if self.lstm is not None:
            embeddings = self.lstm(embeddings[None])[0][0]
        return embeddings if self.mlp is None else self.mlp(embeddings)


class PrefixEncoder(nn.Module):
    """Computes past keys and values of every layer, as if n more tokens preceded the row.

    Source: "none": Liu et al. 2022, arXiv:2110.07602, section 3.2; "mlp": Li and Liang 2021, arXiv:2101.00190,
    section 4.3: a table of embeddings and a tanh network, dropped after training. Here the output of the network is
    added to `start` and is initially 0. Without `start`, keys are near 0 and draw attention from every token; SmolLM2
    did not learn from there.

    Args:
        kind: "none": the keys and values are trained directly; "mlp": a network computes them.
        start: float [l, 2, 1, k, n, d], initial keys and values: those of real tokens.
        width: width of the network, in floats.
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
        """Compute the keys and values, float [l, 2, 1, k, n, d]."""
        if self.mlp is None:
            return self.prefix_kv
        layers, two, one, heads, n_prefix, head_width = self.prefix_kv.shape
        flat: Tensor = self.mlp(self.embeddings)
        return self.prefix_kv + flat.view(n_prefix, layers, two, one, heads, head_width).permute(1, 2, 3, 4, 0, 5)
