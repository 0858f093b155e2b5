"""Keys and values of each row before its first virtual token, computed once instead of in every epoch.

On a frozen causal model these prefixes do not depend on anything that is trained, since attention sees only earlier
tokens. They need no autograd graph and are cached as far as memory allows; a training step runs the model over the
suffixes alone. Shapes as in `models/classifier.py`.
"""

from collections.abc import Sequence

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.prompt.scoring import TaskTensors


class PrefixCache:
    """Rows, split before their first virtual token into a prefix that is computed once and a suffix.

    Which prefixes are cached, and which are computed in one batch, depends only on the arguments, so that a resumed
    training computes the same floats.

    Args:
        classifier: the module of a frozen causal model.
        encodings: rows without the folded tokens; each has a virtual token.
        folded_kv: float [l, 2, 1, k, n, d], keys and values of the folded tokens, which are not trained; n may be 0.
        cache_bytes: maximum memory for keys and values; prefixes beyond it are computed again at each use.
        batch_rows: rows per forward pass.

    Attributes:
        free_bytes: remaining memory of `cache_bytes`.
    """

    def __init__(
        self,
        classifier: PromptClassifier,
        encodings: Sequence[Encoding],
        folded_kv: Tensor,
        *,
        cache_bytes: int,
        batch_rows: int,
    ) -> None:
        self._classifier = classifier
        self._folded_kv = folded_kv
        rows = [torch.tensor(encoding.ids, device=folded_kv.device) for encoding in encodings]
        cuts = [int((row >= classifier.vocab).to(torch.int64).argmax()) for row in rows]
        self._prefixes = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
        self._suffixes = [row[cut:] for row, cut in zip(rows, cuts, strict=True)]
        self._cached: dict[int, Tensor] = {}
        layers, two, _, k, _, d = folded_kv.shape
        token_bytes = layers * two * k * d * folded_kv.element_size()
        self.free_bytes = cache_bytes
        chosen: list[int] = []
        for i, prefix in enumerate(self._prefixes):
            if len(prefix) * token_bytes <= self.free_bytes:
                self.free_bytes -= len(prefix) * token_bytes
                chosen.append(i)
        chosen.sort(key=lambda i: len(self._prefixes[i]))
        for start in range(0, len(chosen), batch_rows):
            batch = chosen[start : start + batch_rows]
            self._cached |= zip(batch, self._compute(batch), strict=True)

    def logits(self, batch: Sequence[int], tensors: TaskTensors) -> Tensor:
        """Compute the logits of some rows, float [b, c].

        Args:
            batch: row indices.
            tensors: the task tensors; their `prefix_kv` is not used.
        """
        prefix_kv, mask = self._join(batch)
        suffixes = [self._suffixes[i] for i in batch]
        logits: Tensor = self._classifier(
            input_ids=pad_sequence(suffixes, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(suffix) for suffix in suffixes], batch_first=True),
            prompt_embeddings=tensors.prompt_embeddings,
            label_weights=tensors.label_weights,
            label_bias=tensors.label_bias,
            prefix_kv=prefix_kv,
            prefix_mask=mask,
        )
        return logits

    @torch.no_grad()
    def _join(self, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Join the folded tokens and the prefix of each row: float [l, 2, b, k, n + s, d], and mask int64 [b, n + s].

        Padding is on the left, before the folded tokens too: sliding-window attention counts distances by index,
        whatever the position ids are.
        """
        missing = [i for i in batch if i not in self._cached]
        computed = (
            self._cached if not missing else self._cached | dict(zip(missing, self._compute(missing), strict=True))
        )
        n_folded = self._folded_kv.shape[4]
        length = n_folded + max(len(self._prefixes[i]) for i in batch)
        layers, two, _, k, _, d = self._folded_kv.shape
        prefix_kv = self._folded_kv.new_zeros(layers, two, len(batch), k, length, d)
        mask = torch.zeros(len(batch), length, dtype=torch.int64, device=prefix_kv.device)
        for row, i in enumerate(batch):
            start = length - len(self._prefixes[i])
            prefix_kv[:, :, row, :, start - n_folded : start] = self._folded_kv[:, :, 0]
            prefix_kv[:, :, row, :, start:] = computed[i]
            mask[row, start - n_folded :] = 1
        return prefix_kv, mask

    @torch.no_grad()
    def _compute(self, batch: Sequence[int]) -> list[Tensor]:
        """Compute the keys and values of prefixes, each float [l, 2, k, s, d] in its own memory."""
        ids = pad_sequence([self._prefixes[i] for i in batch], batch_first=True)
        if ids.shape[1] == 0:
            ids = ids.new_zeros(len(batch), 1)  # texts may be empty, but models need at least one token
        unused = self._classifier.table.weight[:1]  # a prefix has no virtual token
        keys_values = self._classifier.keys_and_values(ids, unused, self._folded_kv)
        start = self._folded_kv.shape[4]
        return [
            keys_values[:, :, row, :, start : start + len(self._prefixes[i])].clone() for row, i in enumerate(batch)
        ]
