"""Rows -> batches -> the loss of a step and its gradients; knows nothing of rates, epochs or files."""

import itertools
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.scoring import EncodedRows, ScoreBatch, Scorer
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt
from ptexport.toolkit.run.config import TrainSettings
from ptexport.toolkit.training.prefix_cache import CutRows

_SORTED_BATCHES = 16  # batches are sorted by length within this many, so that they stay random and are padded little


class NotFiniteError(ArithmeticError):
    """The loss is not a number any more."""


def score_batches(
    scorer: Scorer, prompt: SoftPrompt, parts: Sequence[EncodedRows], settings: TrainSettings
) -> list[ScoreBatch]:
    """Choose how each part's rows are scored: by their tails alone, where the rest need be read but once.

    Args:
        scorer: its classifier is the backbone.
        prompt: what is trained.
        parts: rows; the first have the first call on the memory for what is read once.
        settings: how much that is.
    """
    if not scorer.reads_once:
        return [scorer.score_batch(part.encodings) for part in parts]
    with torch.no_grad():
        leading = scorer.classifier.prefix_kv(scorer.leading_ids, prompt.prompt_embeddings())
    free_bytes = settings.cache_mb << 20
    scores: list[ScoreBatch] = []
    for part in parts:
        rows = CutRows(
            scorer.classifier, part.encodings, leading, cache_bytes=free_bytes, batch_rows=settings.batch_size
        )
        free_bytes = rows.free_bytes
        scores.append(rows.logits)
    return scores


class Loss:
    """The mean cross-entropy of the rows of one step, however many batches they come in; nats.

    Args:
        prompt: what is trained.
        settings: whether labels are weighed, and what is computed in bf16.
        scorer: its classifier is the backbone.
        train: the rows.
        score_batch: scores them.
    """

    def __init__(
        self, prompt: SoftPrompt, settings: TrainSettings, scorer: Scorer, train: EncodedRows, score_batch: ScoreBatch
    ) -> None:
        self._prompt = prompt
        self._score_batch = score_batch
        self._scorer = scorer
        with torch.no_grad():
            self._fixed = None if scorer.trains_leading else scorer.task_tensors(prompt).prefix_kv
        self._device = self._prompt.prompt_embeddings().device
        self._targets = torch.tensor(train.targets, device=self._device)
        self._weights = train.class_weights(settings.balance).to(self._device)
        self._autocast = settings.autocast == "bf16"

    def with_gradients(self, batches: Sequence[list[int]]) -> float:
        """Return the loss, and add the gradients of this process's share to those there are.

        Raises:
            NotFiniteError: it is no number.
        """
        total = self._weights[self._targets[list(itertools.chain(*batches))]].sum()
        loss = 0.0
        for batch in filter(None, map(distributed.share, batches)):
            part = self._of(batch) / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        loss = distributed.add_number(loss)
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss}")
        return loss

    def _of(self, batch: Sequence[int]) -> Tensor:
        tensors = self._scorer.task_tensors(self._prompt, self._fixed)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits = self._score_batch(batch, tensors)
        targets = self._targets[batch]
        return functional.cross_entropy(logits.float(), targets, weight=self._weights, reduction="sum")


def batches(lengths: Sequence[int], batch_size: int, random_: random.Random) -> list[list[int]]:
    """Visit every row once, in random order, in batches of similar lengths."""
    order = list(range(len(lengths)))
    random_.shuffle(order)
    span = batch_size * _SORTED_BATCHES
    made: list[list[int]] = []
    for start in range(0, len(order), span):
        chunk = sorted(order[start : start + span], key=lambda i: lengths[i])
        made += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    random_.shuffle(made)
    return made
