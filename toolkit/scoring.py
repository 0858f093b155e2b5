"""Rows -> ids -> logits and accuracy, by the classifier and the prompt as they are; trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.rows import Row
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.classifier import PromptClassifier
from ptexport.toolkit.encoder import SoftPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Rows as the classifier takes them.

    Attributes:
        encodings: ids and masks, template included.
        targets: index of each row's label.
    """

    encodings: list[Encoding]
    targets: list[int]

    @classmethod
    def encode(cls, rows: Sequence[Row], encoder: TextEncoder, labels: Sequence[str]) -> "Examples":
        """Encode rows.

        Raises:
            DataError: a text that cannot be encoded.
        """
        index = {label: i for i, label in enumerate(labels)}
        targets = [index[row.label or ""] for row in rows]
        return cls(encodings=encoder.encode([row.texts for row in rows]), targets=targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores texts with what will be shipped: the leading prompt folded once, the rest of the template per row.

    Attributes:
        classifier: frozen.
        encoder: the tokenizer without the folded tokens.
        leading_ids: of the folded tokens.
        batch_rows: rows scored at once.
    """

    classifier: PromptClassifier
    encoder: TextEncoder
    leading_ids: list[int]
    batch_rows: int

    @property
    def trains_leading(self) -> bool:
        """Whether training changes the leading prompt, so that its states cannot be computed once."""
        return any(id_ >= self.classifier.vocab for id_ in self.leading_ids)

    @torch.no_grad()
    def leading_states(self, prompt: SoftPrompt) -> Tensor | None:
        """Compute the keys and values of the leading prompt; None if there is none."""
        return self.classifier.leading_states(self.leading_ids, prompt.prompt_rows()) if self.leading_ids else None

    @torch.no_grad()
    def logits(self, prompt: SoftPrompt, encodings: Sequence[Encoding]) -> Tensor:
        """Score rows as `encoder` encodes them, float [rows, c]."""
        rows, leading = prompt.prompt_rows(), self.leading_states(prompt)
        logits = torch.empty(len(encodings), len(prompt.label_bias), device=rows.device)
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]))
        for start in range(0, len(order), self.batch_rows):
            batch = order[start : start + self.batch_rows]
            logits[batch] = forward(self.classifier, prompt, [encodings[i] for i in batch], rows, leading)
        return logits

    def accuracy(self, prompt: SoftPrompt, examples: Examples) -> tuple[float, float]:
        """Return the share of rows answered right, and the mean cross-entropy in nats."""
        logits = self.logits(prompt, examples.encodings)
        targets = torch.tensor(examples.targets, device=logits.device)
        loss = functional.cross_entropy(logits, targets)
        return (logits.argmax(1) == targets).double().mean().item(), loss.item()


def forward(
    classifier: PromptClassifier,
    prompt: SoftPrompt,
    encodings: Sequence[Encoding],
    rows: Tensor,
    leading_states: Tensor | None,
) -> Tensor:
    """Score a batch of rows, float [rows, c].

    Args:
        classifier: frozen.
        prompt: its label rows are read.
        encodings: of rows of any lengths.
        rows: the prompt's rows, float [p, e].
        leading_states: of the tokens before `encodings`, if they are folded.
    """
    ids = {name: torch.from_numpy(array).to(rows.device) for name, array in TextEncoder.pad(encodings).items()}
    if not classifier.token_types:
        del ids["token_type_ids"]
    logits: Tensor = classifier(
        **ids,
        prompt_rows=rows,
        label_rows=prompt.label_rows,
        label_bias=prompt.label_bias,
        leading_states=leading_states,
    )
    return logits
