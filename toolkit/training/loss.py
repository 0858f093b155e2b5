"""Encoded rows -> batches -> the loss of a step and its gradients."""

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
from ptexport.toolkit.training.prefix_cache import PrefixCache

_SORTED_BATCHES = 16  # rows are sorted by length within this many batches: little padding, and still random


class NotFiniteError(ArithmeticError):
    """The loss or a weight is infinite or NaN."""


def score_batches(
    scorer: Scorer, prompt: SoftPrompt, parts: Sequence[EncodedRows], settings: TrainSettings
) -> list[ScoreBatch]:
    """Create a scoring function for each part, with cached prefixes if they are constant.

    Args:
        scorer: the scorer of the rows.
        prompt: the prompt that is trained.
        parts: encoded rows; earlier parts use the memory of the cache first.
        settings: the size of the cache.
    """
    if not scorer.caches_prefixes:
        return [scorer.score_batch(part.encodings) for part in parts]
    with torch.no_grad():
        folded_kv = scorer.classifier.prefix_kv(scorer.folded_ids, prompt.prompt_embeddings())
    free_bytes = settings.cache_mb << 20
    scores: list[ScoreBatch] = []
    for part in parts:
        cache = PrefixCache(
            scorer.classifier, part.encodings, folded_kv, cache_bytes=free_bytes, batch_rows=settings.batch_size
        )
        free_bytes = cache.free_bytes
        scores.append(cache.logits)
    return scores


class Loss:
    """The mean cross-entropy of the rows of one step, in one or several batches; nats.

    Args:
        prompt: the prompt that is trained.
        settings: class weights and precision.
        scorer: the scorer of the rows.
        train: the training rows.
        score_batch: the scoring function of the training rows.
    """

    def __init__(
        self, prompt: SoftPrompt, settings: TrainSettings, scorer: Scorer, train: EncodedRows, score_batch: ScoreBatch
    ) -> None:
        self._prompt = prompt
        self._score_batch = score_batch
        self._scorer = scorer
        with torch.no_grad():
            self._folded_kv = None if scorer.trains_folded else scorer.task_tensors(prompt).prefix_kv
        self._device = self._prompt.prompt_embeddings().device
        self._targets = torch.tensor(train.targets, device=self._device)
        self._weights = train.class_weights(settings.balance).to(self._device)
        self._autocast = settings.autocast == "bf16"

    def with_gradients(self, batches: Sequence[list[int]]) -> float:
        """Return the loss, and add the gradients of this process's shard of each batch.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        total = self._weights[self._targets[list(itertools.chain(*batches))]].sum()
        loss = 0.0
        for batch in filter(None, map(distributed.shard, batches)):
            part = self._sum(batch) / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        loss = distributed.add_number(loss)
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss}")
        return loss

    def _sum(self, batch: Sequence[int]) -> Tensor:
        tensors = self._scorer.task_tensors(self._prompt, self._folded_kv)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits = self._score_batch(batch, tensors)
        targets = self._targets[batch]
        return functional.cross_entropy(logits.float(), targets, weight=self._weights, reduction="sum")


def batches(lengths: Sequence[int], batch_size: int, random_: random.Random) -> list[list[int]]:
    """Split all rows into batches of similar lengths, in random order."""
    order = list(range(len(lengths)))
    random_.shuffle(order)
    span = batch_size * _SORTED_BATCHES
    made: list[list[int]] = []
    for start in range(0, len(order), span):
        chunk = sorted(order[start : start + span], key=lambda i: lengths[i])
        made += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    random_.shuffle(made)
    return made
