"""What makes a task's probabilities honest: a temperature, a probability below which not to answer, a prior."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import DataError, TrainError
from ptexport.toolkit.prompt.scoring import Scorer
from ptexport.toolkit.prompt.soft_prompt import SoftPrompt

_PRIOR_SIGMA = 0.5  # of the temperature's logarithm: two in three are between 0.6 and 1.6


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Find the temperature that makes probabilities honest: logits are divided by it, labels stay.

    Few rows say little, and rows that are all right would say that no answer can be too sure: so the temperature is
    the most probable one under a log-normal prior around 1, which is as good as no prior for hundreds of rows.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; the prior is ours.

    Args:
        logits: float [rows, c].
        targets: int64 [rows].

    Returns:
        The temperature, between 0.05 and 20.
    """
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = logits.detach().double().cpu()
    wanted = targets.cpu()
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        prior = (log_t / _PRIOR_SIGMA) ** 2 / 2
        loss = functional.cross_entropy(exact / log_t.exp(), wanted, reduction="sum") + prior
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp().clamp(0.05, 20))


_MARGIN = 1e-3  # of a probability: more than its rounding, whoever computes it


def fit_threshold(logits: Tensor, targets: Tensor, accuracy: float) -> float | None:
    """Find the lowest probability such that the rows answered with at least it are right often enough.

    Args:
        logits: float [rows, c], divided by the temperature.
        targets: int64 [rows].
        accuracy: share of the answered rows that must be right, 0 to 1.

    Returns:
        A probability between the lowest that is answered and the highest that is not, so that the rounding of whoever
        computes them again decides nothing; None if even the surest rows are wrong too often.
    """
    probabilities, answers = logits.detach().double().cpu().softmax(1).max(1)
    order = probabilities.argsort(descending=True, stable=True)
    ranked, right = probabilities[order], (answers == targets.cpu())[order].double()
    enough = right.cumsum(0) / torch.arange(1, len(right) + 1) >= accuracy
    # Rows of one probability are answered together or not at all.
    last_of_its_kind = torch.cat([ranked[1:] < ranked[:-1], torch.tensor([True])])
    fits = torch.nonzero(enough & last_of_its_kind)
    if not len(fits):
        return None
    last = int(fits[-1, 0])
    below = ranked[last + 1] if last + 1 < len(ranked) else ranked[last] - _MARGIN
    return float(ranked[last] + below) / 2


_NO_CONTENT = ("N/A", "[MASK]", "")


def measure_log_prior(scorer: Scorer, prompt: SoftPrompt, fields: Sequence[str]) -> Tensor:
    """Measure what a template answers to texts without content, as logarithms to be taken from its logits; float [c].

    Source: Zhao et al. 2021, arXiv:2102.09690, section 5, with its three texts.

    Args:
        scorer: of the template.
        prompt: of the same, nothing taken from its logits yet.
        fields: the texts it takes.

    Raises:
        TrainError: the template adds nothing to an empty text.
    """
    texts: list[Text] = [text if len(fields) == 1 else (text, text) for text in _NO_CONTENT]
    try:
        encodings = scorer.encoder.encode(texts)
    except DataError as e:
        raise TrainError(
            "prior-correction: asks for the answer to an empty text, to which the template adds no token to read; "
            "add words to the template, or leave it out"
        ) from e
    logits = scorer.logits(prompt, encodings)
    return logits.log_softmax(1).logsumexp(0) - math.log(len(texts))
