"""Rows of a frozen causal model, cut before their first virtual token: what stands there is read once, not each epoch.

The keys and values there depend on nothing that is trained, since a causal model sees nothing that follows. So they
build no autograd graph, are kept as far as memory is given, and a step runs the model over the rows' tails alone.
Shapes as in `classifier.py`; knows nothing of targets, losses or templates.
"""

from collections.abc import Sequence

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.prompt.scoring import TaskTensors


class CutRows:
    """Rows whose heads, up to their first virtual token, are read once, and whose tails are scored as often as wanted.

    Which rows are kept, and which are read together, depends on nothing but the arguments: so a training that is gone
    on with computes the same floats.

    Args:
        classifier: of a frozen causal model.
        encodings: rows without the leading tokens; each has a virtual token.
        prefix_kv: float [l, 2, 1, k, n, d], of leading tokens that are not trained; n may be 0.
        cache_bytes: most memory for keys and values; the heads of rows beyond it are read again each time.
        batch_rows: rows read at once.

    Attributes:
        free_bytes: what is left of `cache_bytes`.
    """

    def __init__(
        self,
        classifier: PromptClassifier,
        encodings: Sequence[Encoding],
        prefix_kv: Tensor,
        *,
        cache_bytes: int,
        batch_rows: int,
    ) -> None:
        self._classifier = classifier
        self._leading = prefix_kv
        rows = [torch.tensor(encoding.ids, device=prefix_kv.device) for encoding in encodings]
        cuts = [int((row >= classifier.vocab).to(torch.int64).argmax()) for row in rows]
        self._heads = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
        self._tails = [row[cut:] for row, cut in zip(rows, cuts, strict=True)]
        self._kept: dict[int, Tensor] = {}
        layers, two, _, k, _, d = prefix_kv.shape
        token_bytes = layers * two * k * d * prefix_kv.element_size()
        self.free_bytes = cache_bytes
        chosen: list[int] = []
        for i, head in enumerate(self._heads):
            if len(head) * token_bytes <= self.free_bytes:
                self.free_bytes -= len(head) * token_bytes
                chosen.append(i)
        chosen.sort(key=lambda i: len(self._heads[i]))
        for start in range(0, len(chosen), batch_rows):
            batch = chosen[start : start + batch_rows]
            self._kept |= zip(batch, self._read(batch), strict=True)

    def logits(self, batch: Sequence[int], tensors: TaskTensors) -> Tensor:
        """Score some of the rows, float [b, c].

        Args:
            batch: their indices.
            tensors: what is trained; its leading states are not used.
        """
        states, mask = self._before_tails(batch)
        tails = [self._tails[i] for i in batch]
        logits: Tensor = self._classifier(
            input_ids=pad_sequence(tails, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(tail) for tail in tails], batch_first=True),
            prompt_embeddings=tensors.prompt_embeddings,
            label_weights=tensors.label_weights,
            label_bias=tensors.label_bias,
            prefix_kv=states,
            prefix_mask=mask,
        )
        return logits

    @torch.no_grad()
    def _before_tails(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Join what stands before each tail, float [l, 2, b, k, n + s, d], and its mask, int64 [b, n + s].

        Padding is on the left, before the leading tokens too: a layer with a window counts how far keys are from the
        query by where they lie, whatever their positions.
        """
        missing = [i for i in batch if i not in self._kept]
        heads = self._kept if not missing else self._kept | dict(zip(missing, self._read(missing), strict=True))
        n_leading = self._leading.shape[4]
        length = n_leading + max(len(self._heads[i]) for i in batch)
        layers, two, _, k, _, d = self._leading.shape
        states = self._leading.new_zeros(layers, two, len(batch), k, length, d)
        mask = torch.zeros(len(batch), length, dtype=torch.int64, device=states.device)
        for row, i in enumerate(batch):
            text = length - len(self._heads[i])
            states[:, :, row, :, text - n_leading : text] = self._leading[:, :, 0]
            states[:, :, row, :, text:] = heads[i]
            mask[row, text - n_leading :] = 1
        return states, mask

    @torch.no_grad()
    def _read(self, batch: Sequence[int]) -> list[Tensor]:
        """Compute the keys and values of heads, each float [l, 2, k, s, d] in memory of its own."""
        ids = pad_sequence([self._heads[i] for i in batch], batch_first=True)
        if ids.shape[1] == 0:
            ids = ids.new_zeros(len(batch), 1)  # texts may be empty, but no model reads nothing
        no_rows = self._classifier.table.weight[:1]  # none is looked up
        states = self._classifier.keys_and_values(ids, no_rows, self._leading)
        first = self._leading.shape[4]
        return [states[:, :, row, :, first : first + len(self._heads[i])].clone() for row, i in enumerate(batch)]
