"""Virtual tokens -> words, by gradient-guided search: a template that a person could have written.

Source: Shin et al. 2020, arXiv:2010.15980, section 2.2 (HotFlip, Ebrahimi et al. 2018): the gradient at a position
ranks the words that may lower the loss there; the first of them are tried, and the best is kept.
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
"""Number of words tried per position."""
_BATCHES_PER_STEP = 4  # a choice between words needs a less noisy loss than a gradient step


def word_ids(words: WordTokenizer, vocab: int) -> list[int]:
    """Return the ids of tokens that are whole words of letters."""
    decoded = ((id_, words.tokenizer.decode([id_]).strip()) for id_ in range(vocab))
    return [id_ for id_, word in decoded if len(word) > 1 and word.isalpha() and words.ids(word, spaced=True) == [id_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Result of a search.

    Attributes:
        ids: token ids of the words, one per virtual token.
        dev_accuracy: dev accuracy with these words, 0 to 1.
        passes: number of passes over all positions.
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
    """Find a word for each virtual token, and leave the embeddings of the words in the prompt.

    Args:
        prompt: the prompt; the search starts from random words.
        scorer: scores dev rows.
        train: training rows, encoded by the encoder of the scorer.
        dev: dev rows, which choose the pass, encoded likewise.
        candidates: token ids to choose from.
        settings: epochs are passes over all positions; a step takes four batches.
        progress: receives steps and passes.

    Raises:
        TrainError: there are no candidates.
    """
    encoder = prompt.encoder
    assert isinstance(encoder, PromptEncoder)
    words = _Words(encoder.embeddings, scorer.classifier.table.weight.detach(), candidates)
    random_ = random.Random(settings.seed)
    ids = random_.choices(candidates, k=words.count)
    best: tuple[float, float, list[int]] = -1.0, 0.0, ids
    passes = since_best = 0
    assert settings.epochs is not None, "it is filled in"
    assert settings.patience is not None, "it is filled in"
    while passes < settings.epochs and since_best < settings.patience:
        for step, position in enumerate(random_.sample(range(words.count), words.count), passes * words.count + 1):
            ids, loss = words.improve(ids, position, _Loss.sample(scorer, prompt, train, random_, settings))
            progress.step(step, settings.epochs * words.count, loss)
        words.put(ids)
        accuracy, dev_loss = scorer.accuracy(prompt, dev)
        passes += 1
        since_best += 1
        progress.epoch(passes, accuracy)
        if (accuracy, -dev_loss) > best[:2]:
            best, since_best = (accuracy, -dev_loss, ids), 0
    words.put(best[2])
    return Found(ids=best[2], dev_accuracy=best[0], passes=passes)


class _Words:
    """Puts the embeddings of words in place of virtual tokens.

    Args:
        embeddings: embeddings of the virtual tokens, float [p, e]; changed in place.
        table: embedding table of the backbone, float [vocab, e].
        candidates: token ids to choose from.

    Raises:
        TrainError: there are no candidates.
    """

    def __init__(self, embeddings: nn.Parameter, table: Tensor, candidates: Sequence[int]) -> None:
        if not candidates:
            raise TrainError("search: the vocabulary has no whole words; use p-tuning")
        self.count = len(embeddings)
        self._embeddings = embeddings
        self._table = table
        self._candidates = torch.tensor(candidates, device=table.device)

    def put(self, ids: list[int]) -> None:
        """Set the virtual tokens to words."""
        self._embeddings.data = self._table[ids].clone()

    def improve(self, ids: list[int], position: int, loss: "_Loss") -> tuple[list[int], float]:
        """Try the most promising words at a position; return the best words and their loss."""
        self.put(ids)
        before, gradient = loss.with_gradient(self._embeddings)
        order = (self._table[self._candidates] @ gradient[position]).argsort()
        promising = self._candidates[order][:N_TRIED].tolist()
        tried = [(self._loss_of(other, loss), other) for other in (_replaced(ids, position, id_) for id_ in promising)]
        lowest, words = min(tried)
        return (words, lowest) if lowest < before else (ids, before)

    def _loss_of(self, ids: list[int], loss: "_Loss") -> float:
        self.put(ids)
        return loss.value()


def _replaced(ids: list[int], position: int, id_: int) -> list[int]:
    return [*ids[:position], id_, *ids[position + 1 :]]


class _Loss:
    """The mean cross-entropy of a fixed sample of rows, in nats."""

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
            self._folded_kv = None if scorer.trains_folded else scorer.task_tensors(prompt).prefix_kv

    @classmethod
    def sample(
        cls, scorer: Scorer, prompt: SoftPrompt, train: EncodedRows, random_: random.Random, settings: TrainSettings
    ) -> "_Loss":
        """Choose rows at random."""
        chosen = random_.choices(range(len(train.encodings)), k=_BATCHES_PER_STEP * settings.batch_size)
        return cls(scorer, prompt, train, chosen, settings)

    def with_gradient(self, embeddings: nn.Parameter) -> tuple[float, Tensor]:
        """Return the loss and its gradient with respect to the embeddings, float [p, e]."""
        embeddings.grad = None
        total = 0.0
        for batch in self._batches:
            part = self._sum(*batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.item()
        assert embeddings.grad is not None
        gradient = embeddings.grad
        embeddings.grad = None
        return total, gradient

    @torch.no_grad()
    def value(self) -> float:
        """Return the loss with the current embeddings."""
        return sum(self._sum(*batch).item() for batch in self._batches)

    def _sum(self, encodings: list[Encoding], targets: Tensor) -> Tensor:
        logits = forward(self._scorer.classifier, encodings, self._scorer.task_tensors(self._prompt, self._folded_kv))
        losses = functional.cross_entropy(logits, targets, weight=self._weights.to(logits.device), reduction="sum")
        return losses / self._n_rows
