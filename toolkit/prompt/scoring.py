"""Rows -> ids -> logits and accuracy, with the current prompt; does not train."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """Rows, encoded for the classifier.

    Attributes:
        encodings: ids and masks, including the template; a multiple choice has one encoding per candidate.
        targets: index of the label of each encoding.
        n_labels: number of labels.
        n_choices: number of candidates of each multiple choice; empty without multiple choices.
    """

    encodings: list[Encoding]
    targets: list[int]
    n_labels: int
    n_choices: list[int]

    @classmethod
    def encode(cls, rows: Sequence[Row], encoder: TextEncoder, labels: Sequence[str]) -> "EncodedRows":
        """Encode rows; each candidate of a multiple choice becomes a pair.

        Raises:
            DataError: a text cannot be encoded.
        """
        index = {label: i for i, label in enumerate(labels)}
        flat = pairs(rows, labels)
        return cls(
            encodings=encoder.encode([row.texts for row in flat]),
            targets=[index[row.label or ""] for row in flat],
            n_labels=len(labels),
            n_choices=[len(row.choices) for row in rows if row.choices is not None],
        )

    def correct_choices(self, scores: Tensor) -> Tensor:
        """Return for each multiple choice whether the correct candidate has the highest score, bool [rows].

        Args:
            scores: score of each candidate, float [encodings].
        """
        parts = zip(
            torch.split(scores, self.n_choices), torch.split(torch.tensor(self.targets), self.n_choices), strict=True
        )
        return torch.stack([targets[row.argmax()] == 0 for row, targets in parts])

    def class_weights(self, balance: bool) -> Tensor:
        """Return weights of the labels in the loss, float [c]: 1, or with `balance` inverse to their number of rows."""
        if not balance:
            return torch.ones(self.n_labels)
        counts = torch.tensor(self.targets).bincount(minlength=self.n_labels)
        return len(self.targets) / (self.n_labels * counts.clamp(min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Computes logits as the bundle will: the leading tokens are folded, the rest of the template is in every row.

    Attributes:
        classifier: the module that is trained and traced.
        encoder: text encoder without the folded tokens.
        folded_ids: ids of the folded tokens.
        trains_folded: whether training changes the keys and values of the folded tokens, so that every step computes
            them again.
        caches_prefixes: whether the keys and values of a row before its first virtual token are constant; see
            `training/prefix_cache.py`.
        batch_rows: rows per forward pass.
    """

    classifier: PromptClassifier
    encoder: TextEncoder
    folded_ids: list[int]
    trains_folded: bool
    caches_prefixes: bool
    batch_rows: int

    def task_tensors(self, prompt: SoftPrompt, prefix_kv: Tensor | None = None) -> "TaskTensors":
        """Compute the task tensors of a prompt, with gradients if they are enabled.

        The folded tokens run through the model once, not in every row.

        Args:
            prompt: the current prompt.
            prefix_kv: keys and values of the folded tokens, if known; None: compute them, if any.
        """
        prompt_embeddings = prompt.prompt_embeddings()
        label_weights, label_bias = prompt.labels()
        if prompt.prefix is not None:
            prefix_kv = prompt.prefix()
        elif prefix_kv is None and self.folded_ids:
            prefix_kv = self.classifier.prefix_kv(self.folded_ids, prompt_embeddings)
        return TaskTensors(
            prompt_embeddings=prompt_embeddings,
            label_weights=label_weights,
            label_bias=label_bias,
            prefix_kv=prefix_kv,
        )

    def score_batch(self, encodings: Sequence[Encoding]) -> "ScoreBatch":
        """Create a function that scores batches of these rows, each from its first token on."""
        return lambda batch, tensors: forward(self.classifier, [encodings[i] for i in batch], tensors)

    @torch.no_grad()
    def logits(
        self, prompt: SoftPrompt, encodings: Sequence[Encoding], score_batch: "ScoreBatch | None" = None
    ) -> Tensor:
        """Compute logits, float [rows, c].

        Args:
            prompt: the current prompt.
            encodings: rows, encoded by `encoder`.
            score_batch: a faster function for the same logits; None: score whole rows.
        """
        rows: dict[int, Tensor] = {}
        for batch, logits in self._score(prompt, encodings, score_batch, self._batches(encodings)):
            rows.update(zip(batch, logits, strict=True))
        return torch.stack([rows[i] for i in range(len(encodings))])

    def _batches(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        """Group row indices into batches, the longest rows first."""
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]))
        return [order[start : start + self.batch_rows] for start in range(0, len(order), self.batch_rows)]

    @torch.no_grad()
    def _score(
        self,
        prompt: SoftPrompt,
        encodings: Sequence[Encoding],
        score_batch: "ScoreBatch | None",
        batches: Sequence[list[int]],
    ) -> Iterator[tuple[list[int], Tensor]]:
        score_batch = score_batch or self.score_batch(encodings)
        tensors = self.task_tensors(prompt)
        for batch in batches:
            yield batch, score_batch(batch, tensors)

    def accuracy(
        self, prompt: SoftPrompt, rows: EncodedRows, score_batch: "ScoreBatch | None" = None
    ) -> tuple[float, float]:
        """Return the accuracy (0 to 1) and the mean cross-entropy in nats.

        With multiple choices, accuracy is over rows and cross-entropy over their pairs.

        Args:
            prompt: the current prompt.
            rows: rows, encoded by `encoder`.
            score_batch: see `logits`.
        """
        device = self.classifier.table.weight.device
        correct, scores = torch.zeros(2, len(rows.targets), device=device)
        loss = 0.0
        # Batch by batch, since there may be as many labels as words in the vocabulary.
        batches = distributed.shard(self._batches(rows.encodings))
        for batch, logits in self._score(prompt, rows.encodings, score_batch, batches):
            targets = torch.tensor([rows.targets[i] for i in batch], device=device)
            correct[batch] = (logits.argmax(1) == targets).float()
            scores[batch] = logits[:, 0] - logits[:, 1]
            loss += functional.cross_entropy(logits, targets, reduction="sum").item()
        distributed.add([correct, scores])
        loss = distributed.add_number(loss)
        if rows.n_choices:
            correct = rows.correct_choices(scores.cpu())
        return correct.double().cpu().mean().item(), loss / len(rows.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTensors:
    """The task tensors at one step; shapes as in `PromptClassifier.forward`."""

    prompt_embeddings: Tensor
    label_weights: Tensor
    label_bias: Tensor
    prefix_kv: Tensor | None


ScoreBatch = Callable[[Sequence[int], TaskTensors], Tensor]
"""Row indices and task tensors -> logits, float [b, c]."""


def forward(classifier: PromptClassifier, encodings: Sequence[Encoding], tensors: TaskTensors) -> Tensor:
    """Score a batch of rows of any lengths, float [rows, c]."""
    device = tensors.prompt_embeddings.device
    ids = {name: torch.from_numpy(array).to(device) for name, array in TextEncoder.pad(encodings).items()}
    if not classifier.token_types:
        del ids["token_type_ids"]
    logits: Tensor = classifier(
        **ids,
        prompt_embeddings=tensors.prompt_embeddings,
        label_weights=tensors.label_weights,
        label_bias=tensors.label_bias,
        prefix_kv=tensors.prefix_kv,
    )
    return logits
