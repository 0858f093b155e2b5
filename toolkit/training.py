"""The loop: rows -> a trained SoftPrompt; knows batches, rates and stopping, nothing of files or templates."""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.errors import TrainError
from ptexport.runtime.rows import Row
from ptexport.runtime.tokens import Text, TextEncoder
from ptexport.toolkit.classifier import PromptClassifier
from ptexport.toolkit.encoder import SoftPrompt
from ptexport.toolkit.run import TrainSettings

EVALUATION_BATCH_ROWS = 64
_SORTED_BATCHES = 16  # batches are sorted by length within this many, so that they stay random and are padded little


class Progress(Protocol):
    """What a caller may want to show while training runs."""

    def step(self, done: int, total: int, loss: float) -> None:
        """Report an optimizer step."""

    def epoch(self, number: int, dev_accuracy: float) -> None:
        """Report an evaluation on dev."""

    def note(self, message: str) -> None:
        """Say what the user may want to know before training ends."""


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
        return cls(encodings=encoder.encode([text_of(row) for row in rows]), targets=targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores texts with what will be shipped: the leading prompt folded once, the rest of the template per row.

    Attributes:
        classifier: frozen.
        encoder: the tokenizer without the folded tokens.
        leading_ids: of the folded tokens.
    """

    classifier: PromptClassifier
    encoder: TextEncoder
    leading_ids: list[int]

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
        for start in range(0, len(order), EVALUATION_BATCH_ROWS):
            batch = order[start : start + EVALUATION_BATCH_ROWS]
            logits[batch] = _forward(self.classifier, prompt, [encodings[i] for i in batch], rows, leading)
        return logits

    def accuracy(self, prompt: SoftPrompt, examples: Examples) -> tuple[float, float]:
        """Return the share of rows answered right, and the mean cross-entropy in nats."""
        logits = self.logits(prompt, examples.encodings)
        targets = torch.tensor(examples.targets, device=logits.device)
        loss = functional.cross_entropy(logits, targets)
        return (logits.argmax(1) == targets).double().mean().item(), loss.item()


def text_of(row: Row) -> Text:
    """The text or pair that a row brings."""
    return row.text if row.text_b is None else (row.text, row.text_b)


def fit(
    prompt: SoftPrompt,
    scorer: Scorer,
    *,
    train: Examples,
    dev: Examples,
    settings: TrainSettings,
    progress: Progress,
) -> float:
    """Train `prompt` in place and leave it as it was after its best epoch on dev.

    Args:
        prompt: what is trained.
        scorer: scores dev rows; its classifier is the frozen backbone, on the prompt's device.
        train: rows to learn from, encoded by the scorer's encoder, or with the whole template if it trains the leading
            part.
        dev: rows that choose the epoch, encoded by the scorer's encoder.
        settings: rates and sizes.
        progress: told of steps and epochs.

    Returns:
        The best dev accuracy, 0 to 1; among equals, of the epoch with the lower dev loss.

    Raises:
        TrainError: the loss is not a number.
    """
    leading = None if scorer.trains_leading else scorer.leading_states(prompt)
    targets = torch.tensor(train.targets, device=prompt.label_bias.device)
    lengths = [len(encoding) for encoding in train.encodings]
    steps_per_epoch = math.ceil(len(lengths) / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    optimizer = torch.optim.AdamW(prompt.trainable_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, settings.warmup))
    random_ = random.Random(settings.seed)
    best, best_state, since_best = (-1.0, 0.0), copy.deepcopy(prompt.state_dict()), 0
    done = 0
    for epoch in range(1, settings.epochs + 1):
        for batch in _batches(lengths, settings.batch_size, random_):
            some = [train.encodings[i] for i in batch]
            logits = _forward(scorer.classifier, prompt, some, prompt.prompt_rows(), leading)
            loss = functional.cross_entropy(logits, targets[batch])
            _step(loss, prompt, optimizer, settings)
            schedule.step()
            done += 1
            progress.step(done, total, loss.item())
        accuracy, dev_loss = scorer.accuracy(prompt, dev)
        progress.epoch(epoch, accuracy)
        since_best += 1
        if (accuracy, -dev_loss) > best:
            best, best_state, since_best = (accuracy, -dev_loss), copy.deepcopy(prompt.state_dict()), 0
        if since_best >= settings.patience:
            break
    prompt.load_state_dict(best_state)
    return best[0]


def _forward(
    classifier: PromptClassifier,
    prompt: SoftPrompt,
    encodings: Sequence[Encoding],
    rows: Tensor,
    leading_states: Tensor | None,
) -> Tensor:
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


def _step(loss: Tensor, prompt: SoftPrompt, optimizer: torch.optim.Optimizer, settings: TrainSettings) -> None:
    if not math.isfinite(loss.item()):
        raise TrainError(f"training: the loss is {loss.item()} at rate {settings.lr}; use a lower --lr")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(prompt.trainable_parameters(), settings.clip)
    optimizer.step()


def _rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak rate at a step: up linearly, then down linearly to 0."""
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (total - step) / max(1, total - rising))


def _batches(lengths: Sequence[int], batch_size: int, random_: random.Random) -> Iterator[list[int]]:
    """Visit every row once, in random order, in batches of similar lengths."""
    order = list(range(len(lengths)))
    random_.shuffle(order)
    span = batch_size * _SORTED_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        chunk = sorted(order[start : start + span], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    random_.shuffle(batches)
    yield from batches
