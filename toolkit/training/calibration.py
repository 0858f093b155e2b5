"""Dev logits -> temperature, abstention threshold; content-free inputs -> prior for contextual calibration."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import DataError, TrainError
from ptexport.toolkit.prompt.scoring import Scorer
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt

_PRIOR_SIGMA = 0.5  # standard deviation of the log temperature: 68 % are between 0.6 and 1.6
_MARGIN = 1e-3  # in probability: larger than the rounding of any runtime
_CONTENT_FREE = ("N/A", "[MASK]", "")


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Fit the temperature that minimizes the cross-entropy of the rows; logits are divided by it.

    With few rows, or rows that are all predicted correctly, the maximum-likelihood temperature is extreme. Therefore
    this is the maximum a posteriori estimate under a log-normal prior around 1; with hundreds of rows, the prior has
    almost no effect.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; the prior is ours.

    Args:
        logits: float [rows, c].
        targets: int64 [rows].

    Returns:
        The temperature, between 0.05 and 20.
    """
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logits = logits.detach().double().cpu()
    targets = targets.cpu()
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        prior = (log_t / _PRIOR_SIGMA) ** 2 / 2
        loss = functional.cross_entropy(logits / log_t.exp(), targets, reduction="sum") + prior
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp().clamp(0.05, 20))


def fit_threshold(logits: Tensor, targets: Tensor, accuracy: float) -> float | None:
    """Find the lowest probability such that predictions with at least this probability reach an accuracy.

    Args:
        logits: float [rows, c], divided by the temperature.
        targets: int64 [rows].
        accuracy: accuracy to reach, 0 to 1.

    Returns:
        A probability between the lowest that gets a label and the highest that does not, so that rounding does not
        change the result; None if even the most confident predictions do not reach the accuracy.
    """
    probabilities, predictions = logits.detach().double().cpu().softmax(1).max(1)
    order = probabilities.argsort(descending=True, stable=True)
    ranked, correct = probabilities[order], (predictions == targets.cpu())[order].double()
    enough = correct.cumsum(0) / torch.arange(1, len(correct) + 1) >= accuracy
    # All rows of equal probability get a label, or none of them.
    is_last_of_equal = torch.cat([ranked[1:] < ranked[:-1], torch.tensor([True])])
    fits = torch.nonzero(enough & is_last_of_equal)
    if not len(fits):
        return None
    last = int(fits[-1, 0])
    below = ranked[last + 1] if last + 1 < len(ranked) else ranked[last] - _MARGIN
    return float(ranked[last] + below) / 2


def measure_log_prior(scorer: Scorer, prompt: SoftPrompt, fields: Sequence[str]) -> Tensor:
    """Measure the mean label probabilities for content-free inputs, as logarithms to subtract from logits; float [c].

    Source: Zhao et al. 2021, arXiv:2102.09690, section 5 (contextual calibration), with its three inputs.

    Args:
        scorer: scorer of the template.
        prompt: prompt of the template, without a prior.
        fields: names of the texts that the template takes.

    Raises:
        TrainError: the template adds no token to an empty text.
    """
    texts: list[Text] = [text if len(fields) == 1 else (text, text) for text in _CONTENT_FREE]
    try:
        encodings = scorer.encoder.encode(texts)
    except DataError as e:
        raise TrainError(
            "prior-correction: needs logits for an empty text, and the template adds no token to it; add words to the "
            "template, or leave it out"
        ) from e
    logits = scorer.logits(prompt, encodings)
    return logits.log_softmax(1).logsumexp(0) - math.log(len(texts))
