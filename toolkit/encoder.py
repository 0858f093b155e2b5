"""The prompt encoder: virtual tokens -> rows [p, e]; knows nothing of templates or backbones.

Source: Liu et al. 2021, arXiv:2103.10385, section 3.2: h_i = MLP([LSTM forward : LSTM backward]) over free
embeddings. The LSTM has e/2 units a direction, as in THUDM/P-tuning@f4225d4 LAMA/p_tuning/prompt_encoder.py (its
few-shot code uses e and an MLP twice as wide); no dropout, as there.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ptexport.runtime.errors import TrainError

EncoderKind = Literal["lstm", "mlp", "none"]


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


class SoftPrompt(nn.Module):
    """Everything that a task brings to the classifier: rows and label rows, trained or fixed.

    Args:
        encoder: makes the virtual tokens' rows; None where the template has none.
        mask_row: float [e], the [MASK] embedding, for a masked model's mask slot; None elsewhere.
        label_rows: float [c, h].
        label_bias: float [c].
        train_labels: whether the label rows are a linear head to be trained.
        embedding_width: floats per embedding row e.
    """

    def __init__(
        self,
        encoder: PromptEncoder | None,
        *,
        mask_row: Tensor | None,
        label_rows: Tensor,
        label_bias: Tensor,
        train_labels: bool,
        embedding_width: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        # A table of no rows cannot be looked up in, so one of zeros stands in; no id points to it.
        fixed = torch.zeros(0 if encoder is not None else 1, embedding_width) if mask_row is None else mask_row[None]
        self.fixed_rows = nn.Buffer(fixed, persistent=False)
        self.label_rows = nn.Parameter(label_rows.clone(), requires_grad=train_labels)
        self.label_bias = nn.Parameter(label_bias.clone(), requires_grad=train_labels)

    def prompt_rows(self) -> Tensor:
        """Make all rows past the vocabulary, float [p, e]: virtual tokens, then the mask slot."""
        return self.fixed_rows if self.encoder is None else torch.cat([self.encoder(), self.fixed_rows])

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer may change."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
