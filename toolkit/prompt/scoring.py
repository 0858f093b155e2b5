"""Rows -> ids -> logits and accuracy, by the classifier and the prompt as they are; trains nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.rows import Row
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """Rows as the classifier takes them.

    Attributes:
        encodings: ids and masks, template included.
        targets: index of each row's label.
        n_labels: how many labels there are.
        n_choices: of multiple choices, how many of the encodings are each row's candidates; otherwise empty.
    """

    encodings: list[Encoding]
    targets: list[int]
    n_labels: int
    n_choices: list[int]

    @classmethod
    def encode(cls, rows: Sequence[Row], encoder: TextEncoder, labels: Sequence[str]) -> "EncodedRows":
        """Encode rows, each candidate of a multiple choice as a pair.

        Raises:
            DataError: a text that cannot be encoded.
        """
        index = {label: i for i, label in enumerate(labels)}
        one_by_one = pairs(rows, labels)
        return cls(
            encodings=encoder.encode([row.texts for row in one_by_one]),
            targets=[index[row.label or ""] for row in one_by_one],
            n_labels=len(labels),
            n_choices=[len(row.choices) for row in rows if row.choices is not None],
        )

    def right_choices(self, scores: Tensor) -> Tensor:
        """Say of multiple choices whether the highest of a row's scores is the right one's, bool [rows].

        Args:
            scores: of each candidate, float [encodings].
        """
        parts = zip(
            torch.split(scores, self.n_choices), torch.split(torch.tensor(self.targets), self.n_choices), strict=True
        )
        return torch.stack([targets[row.argmax()] == 0 for row, targets in parts])

    def class_weights(self, balance: bool) -> Tensor:
        """Weigh labels, float [c]: all alike, or so that each has the same share whatever its rows."""
        if not balance:
            return torch.ones(self.n_labels)
        counts = torch.tensor(self.targets).bincount(minlength=self.n_labels)
        return len(self.targets) / (self.n_labels * counts.clamp(min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores texts with what will be shipped: the leading prompt folded once, the rest of the template per row.

    Attributes:
        classifier: frozen.
        encoder: the tokenizer without the folded tokens.
        leading_ids: of the folded tokens.
        trains_leading: whether training changes what stands before the rows, so that it cannot be computed once.
        reads_once: whether it changes none before a row's first virtual token, and there is a text before that.
        batch_rows: rows scored at once.
    """

    classifier: PromptClassifier
    encoder: TextEncoder
    leading_ids: list[int]
    trains_leading: bool
    reads_once: bool
    batch_rows: int

    def task_tensors(self, prompt: SoftPrompt, prefix_kv: Tensor | None = None) -> "TaskTensors":
        """Make what a prompt brings at this moment, with gradients where they are on.

        What stands before all rows is run through the model once, not in each row.

        Args:
            prompt: as it is now.
            prefix_kv: keys and values of what stands before the rows, if they are known; None: they are not, or
                nothing stands there.
        """
        rows = prompt.prompt_embeddings()
        label_weights, label_bias = prompt.labels()
        if prompt.prefix is not None:
            prefix_kv = prompt.prefix()
        elif prefix_kv is None and self.leading_ids:
            prefix_kv = self.classifier.prefix_kv(self.leading_ids, rows)
        return TaskTensors(
            prompt_embeddings=rows, label_weights=label_weights, label_bias=label_bias, prefix_kv=prefix_kv
        )

    def score_batch(self, encodings: Sequence[Encoding]) -> "ScoreBatch":
        """Make what scores these rows, a batch at a time, each from its first token on."""
        return lambda batch, tensors: forward(self.classifier, [encodings[i] for i in batch], tensors)

    @torch.no_grad()
    def logits(
        self, prompt: SoftPrompt, encodings: Sequence[Encoding], score_batch: "ScoreBatch | None" = None
    ) -> Tensor:
        """Score rows as `encoder` encodes them, float [rows, c].

        Args:
            prompt: as it is now.
            encodings: the rows.
            score_batch: a quicker way to the same logits; None: there is none.
        """
        rows: dict[int, Tensor] = {}
        for batch, logits in self._score(prompt, encodings, score_batch, self._batches(encodings)):
            rows.update(zip(batch, logits, strict=True))
        return torch.stack([rows[i] for i in range(len(encodings))])

    def _batches(self, encodings: Sequence[Encoding]) -> list[list[int]]:
        """Group row numbers, the longest first."""
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
        self, prompt: SoftPrompt, examples: EncodedRows, score_batch: "ScoreBatch | None" = None
    ) -> tuple[float, float]:
        """Return the share of rows answered right, and the mean cross-entropy in nats; arguments as of `logits`.

        Of multiple choices the cross-entropy is that of their pairs.
        """
        device = self.classifier.table.weight.device
        right, scores = torch.zeros(2, len(examples.targets), device=device)
        loss = 0.0
        # Batch by batch, since labels may be as many as the vocabulary has words.
        batches = distributed.share(self._batches(examples.encodings))
        for batch, logits in self._score(prompt, examples.encodings, score_batch, batches):
            targets = torch.tensor([examples.targets[i] for i in batch], device=device)
            right[batch] = (logits.argmax(1) == targets).float()
            scores[batch] = logits[:, 0] - logits[:, 1]
            loss += functional.cross_entropy(logits, targets, reduction="sum").item()
        distributed.add([right, scores])
        loss = distributed.add_number(loss)
        if examples.n_choices:
            right = examples.right_choices(scores.cpu())
        return right.double().cpu().mean().item(), loss / len(examples.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTensors:
    """What a prompt brings to the classifier at one moment; shapes as there."""

    prompt_embeddings: Tensor
    label_weights: Tensor
    label_bias: Tensor
    prefix_kv: Tensor | None


ScoreBatch = Callable[[Sequence[int], TaskTensors], Tensor]
"""Indices of rows, and what a prompt tensors -> logits, float [b, c]."""


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
