"""Virtual tokens -> words: a search, guided by gradients, for a template that people could have written.

Source: Shin et al. 2020, arXiv:2010.15980, section 2.2 (HotFlip, Ebrahimi et al. 2018): the gradient at a position says
which words might lower the loss there; those are tried, and the best is kept.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor, nn
from torch.nn import functional

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.encoders import PromptEncoder
from ptexport.toolkit.prompt.scoring import EncodedRows, Scorer, forward
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.config import TrainSettings
from ptexport.toolkit.template.words import WordTokenizer

N_TRIED = 8
"""Words tried at a position."""
_ROWS_PER_STEP = 4  # times the batch size: a choice among words needs a steadier loss than a step along a gradient


def word_ids(words: WordTokenizer, vocab: int) -> list[int]:
    """Find the tokens that are whole words of letters: what a person would put into a template."""
    decoded = ((id_, words.tokenizer.decode([id_]).strip()) for id_ in range(vocab))
    return [id_ for id_, word in decoded if len(word) > 1 and word.isalpha() and words.ids(word, spaced=True) == [id_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        ids: of the words, one per virtual token.
        dev_accuracy: with them, 0 to 1.
        passes: over all positions.
    """

    ids: list[int]
    dev_accuracy: float
    passes: int


def search(
    prompt: SoftPrompt,
    scorer: Scorer,
    *,
    train: EncodedRows,
    dev: EncodedRows,
    candidates: Sequence[int],
    settings: TrainSettings,
    progress: Progress,
) -> Found:
    """Find a word for each virtual token, and leave their embeddings in the prompt.

    Args:
        prompt: its encoder's rows are set; it starts with words chosen at random.
        scorer: scores dev rows.
        train: rows the loss is of, encoded by the scorer's encoder.
        dev: rows that choose among passes.
        candidates: tokens to choose from.
        settings: `epochs` passes over all positions at most, `patience` without a better dev accuracy, `batch_size`
            (a step looks at four batches) and `seed` count.
        progress: told of steps and passes.

    Raises:
        TrainError: there is no candidate.
    """
    if not candidates:
        raise TrainError("search: the vocabulary holds no whole words; use p-tuning")
    encoder = prompt.encoder
    assert isinstance(encoder, PromptEncoder)
    rows = encoder.embeddings
    table = scorer.classifier.table.weight.detach()
    random_ = random.Random(settings.seed)
    ids = random_.choices(candidates, k=len(rows))
    best: tuple[float, float, list[int]] = -1.0, 0.0, ids
    passes = worse = 0
    while passes < settings.epochs and worse < settings.patience:
        for step, position in enumerate(random_.sample(range(len(rows)), len(rows)), passes * len(rows) + 1):
            chosen = random_.choices(range(len(train.encodings)), k=_ROWS_PER_STEP * settings.batch_size)
            loss = _Loss(scorer, prompt, train, chosen, settings)
            ids, lowest = _try_words(loss, rows, table, ids, position, candidates)
            progress.step(step, settings.epochs * len(rows), lowest)
        rows.data = table[ids].clone()
        accuracy, dev_loss = scorer.accuracy(prompt, dev)
        passes += 1
        worse += 1
        progress.epoch(passes, accuracy)
        if (accuracy, -dev_loss) > best[:2]:
            best, worse = (accuracy, -dev_loss, ids), 0
    rows.data = table[best[2]].clone()
    return Found(ids=best[2], dev_accuracy=best[0], passes=passes)


def _try_words(
    loss: "_Loss", rows: nn.Parameter, table: Tensor, ids: list[int], position: int, candidates: Sequence[int]
) -> tuple[list[int], float]:
    """Put the best of a few promising words at a position, if it is better than what stands there."""
    rows.data = table[ids].clone()
    before, gradient = loss.with_gradient(rows)
    allowed = torch.tensor(candidates, device=table.device)
    promising = allowed[(table[allowed] @ gradient[position]).argsort()][:N_TRIED].tolist()
    changed = [[*ids[:position], id_, *ids[position + 1 :]] for id_ in promising]
    lowest, words = min((loss.at(rows, table[words]), words) for words in changed)
    return (words, lowest) if lowest < before else (ids, before)


class _Loss:
    """The mean cross-entropy of the same few rows, whatever the words."""

    def __init__(
        self, scorer: Scorer, prompt: SoftPrompt, train: EncodedRows, chosen: Sequence[int], settings: TrainSettings
    ) -> None:
        self._scorer = scorer
        self._prompt = prompt
        self._batches: list[tuple[list[Encoding], Tensor]] = []
        device = prompt.prompt_embeddings().device
        ordered = sorted(chosen, key=lambda i: len(train.encodings[i]))
        for start in range(0, len(ordered), settings.batch_size):
            batch = ordered[start : start + settings.batch_size]
            targets = torch.tensor([train.targets[i] for i in batch], device=device)
            self._batches.append(([train.encodings[i] for i in batch], targets))
        self._n_rows = len(ordered)
        self._weights = train.class_weights(settings.balance)
        with torch.no_grad():
            self._fixed = None if scorer.trains_leading else scorer.task_tensors(prompt).prefix_kv

    def with_gradient(self, rows: nn.Parameter) -> tuple[float, Tensor]:
        """Return the loss and its gradient, float [p, e]."""
        rows.grad = None
        total = 0.0
        for batch in self._batches:
            part = self._of(*batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        assert rows.grad is not None
        gradient = rows.grad
        rows.grad = None
        return total, gradient

    @torch.no_grad()
    def at(self, rows: nn.Parameter, values: Tensor) -> float:
        """Return the loss with other rows."""
        rows.data = values.clone()
        return sum(self._of(*batch).item() for batch in self._batches)

    def _of(self, encodings: list[Encoding], targets: Tensor) -> Tensor:
        logits = forward(self._scorer.classifier, encodings, self._scorer.task_tensors(self._prompt, self._fixed))
        losses = functional.cross_entropy(logits, targets, weight=self._weights.to(logits.device), reduction="sum")
        return losses / self._n_rows
