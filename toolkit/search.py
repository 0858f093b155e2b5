"""Virtual tokens -> words: a search, guided by gradients, for a template that people could have written.

Source: Shin et al. 2020, arXiv:2010.15980, section 2.2 (HotFlip, Ebrahimi et al. 2018): the gradient at a position says
which words might lower the loss there; those are tried, and the best is kept.
"""

import random
from collections.abc import Sequence

import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.encoder import PromptEncoder, SoftPrompt
from ptexport.toolkit.run import TrainSettings
from ptexport.toolkit.scoring import Brings, Examples, Scorer, forward
from ptexport.toolkit.training import Progress
from ptexport.toolkit.words import WordTokenizer

N_TRIED = 8
"""Words tried at a position."""
_ROWS_PER_STEP = 4  # times the batch size: a choice among words needs a steadier loss than a step along a gradient


def word_ids(words: WordTokenizer, vocab: int) -> list[int]:
    """Find the tokens that are whole words of letters: what a person would put into a template."""
    decoded = ((id_, words.tokenizer.decode([id_]).strip()) for id_ in range(vocab))
    return [id_ for id_, word in decoded if len(word) > 1 and word.isalpha() and words.ids(word, spaced=True) == [id_]]


def search(
    prompt: SoftPrompt,
    scorer: Scorer,
    *,
    train: Examples,
    dev: Examples,
    candidates: Sequence[int],
    settings: TrainSettings,
    progress: Progress,
) -> tuple[list[int], float]:
    """Find a word for each virtual token, and leave their embeddings in the prompt.

    Args:
        prompt: its encoder's rows are set; it starts with words chosen at random.
        scorer: scores dev rows.
        train: rows the loss is of, encoded as `fit` takes them.
        dev: rows that choose among passes.
        candidates: tokens to choose from.
        settings: `epochs` passes over all positions at most, `patience` without a better dev accuracy, `batch_size`
            (a step looks at four batches) and `seed` count.
        progress: told of steps and passes.

    Returns:
        The tokens, and the dev accuracy with them.

    Raises:
        TrainError: there is no candidate.
        KeyboardInterrupt: in the first pass; later it ends the search with what was best.
    """
    if not candidates:
        raise TrainError("search: the vocabulary holds no whole words; use p-tuning")
    encoder = prompt.encoder
    assert isinstance(encoder, PromptEncoder)
    rows = encoder.embeddings
    table = scorer.classifier.table.weight.detach()
    allowed = torch.tensor(candidates, device=table.device)
    random_ = random.Random(settings.seed)
    found = random_.choices(candidates, k=len(rows))
    best: tuple[float, float, list[int]] = -1.0, 0.0, found
    worse = step = 0
    try:
        for epoch in range(settings.epochs):
            for position in random_.sample(range(len(rows)), len(rows)):
                chosen = random_.choices(range(len(train.encodings)), k=_ROWS_PER_STEP * settings.batch_size)
                loss = _Loss(scorer, prompt, train, chosen, settings)
                rows.data = table[found].clone()
                before, gradient = loss.with_gradient(rows)
                ranked = allowed[(table[allowed] @ gradient[position]).argsort()][:N_TRIED]
                tried = {id_: loss.at(rows, table[[*found[:position], id_, *found[position + 1 :]]])
                         for id_ in ranked.tolist()}  # fmt: skip
                winner = min(tried, key=lambda id_: tried[id_])
                if tried[winner] < before:
                    found[position] = winner
                step += 1
                progress.step(step, settings.epochs * len(rows), min(before, tried[winner]))
            rows.data = table[found].clone()
            accuracy, dev_loss = scorer.accuracy(prompt, dev)
            progress.epoch(epoch + 1, accuracy)
            if (accuracy, -dev_loss) > best[:2]:
                best, worse = (accuracy, -dev_loss, list(found)), 0
            else:
                worse += 1
                if worse >= settings.patience:
                    break
    except KeyboardInterrupt:
        if best[0] < 0:
            raise
    rows.data = table[best[2]].clone()
    return best[2], best[0]


class _Loss:
    """The mean cross-entropy of the same few rows, whatever the words."""

    def __init__(
        self, scorer: Scorer, prompt: SoftPrompt, train: Examples, chosen: Sequence[int], settings: TrainSettings
    ) -> None:
        self._scorer = scorer
        self._prompt = prompt
        self._batches: list[tuple[list[Encoding], Tensor]] = []
        device = prompt.prompt_rows().device
        ordered = sorted(chosen, key=lambda i: len(train.encodings[i]))
        for start in range(0, len(ordered), settings.batch_size):
            batch = ordered[start : start + settings.batch_size]
            targets = torch.tensor([train.targets[i] for i in batch], device=device)
            self._batches.append(([train.encodings[i] for i in batch], targets))
        self._n_rows = len(ordered)
        self._weights = train.class_weights(settings.balance)

    def with_gradient(self, rows: torch.nn.Parameter) -> tuple[float, Tensor]:
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
    def at(self, rows: torch.nn.Parameter, values: Tensor) -> float:
        """Return the loss with other rows."""
        rows.data = values.clone()
        return sum(self._of(*batch).item() for batch in self._batches)

    def _of(self, encodings: list[Encoding], targets: Tensor) -> Tensor:
        fixed = None if self._scorer.trains_leading else self._scorer.leading_states(self._prompt)
        logits = forward(self._scorer.classifier, encodings, Brings.of(self._prompt, fixed))
        losses = functional.cross_entropy(logits, targets, weight=self._weights.to(logits.device), reduction="sum")
        return losses / self._n_rows
