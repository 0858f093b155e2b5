"""Logits of dev rows -> a temperature, and a probability below which it is better not to answer."""

import torch
from torch import Tensor
from torch.nn import functional


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Find the temperature that makes probabilities honest: logits are divided by it, labels stay.

    Few rows that are all right would say that no answer can be too sure, so their labels count as (n + 1) / (n + c)
    right rather than 1.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; the counts, for two classes, are Platt 1999, section 2.2.

    Args:
        logits: float [rows, c].
        targets: int64 [rows].

    Returns:
        Where the cross-entropy is lowest, between 0.05 and 20.
    """
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exact = logits.detach().double().cpu()
    wanted = targets.cpu()
    n, c = logits.shape
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(exact / log_t.exp(), wanted, label_smoothing=c / (n + c))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp().clamp(0.05, 20))


def fit_threshold(logits: Tensor, targets: Tensor, accuracy: float) -> float | None:
    """Find the lowest probability such that the rows answered with at least it are right often enough.

    Args:
        logits: float [rows, c], divided by the temperature.
        targets: int64 [rows].
        accuracy: share of the answered rows that must be right, 0 to 1.

    Returns:
        The probability; None if even the surest rows are wrong too often.
    """
    probabilities, answers = logits.detach().double().cpu().softmax(1).max(1)
    order = probabilities.argsort(descending=True, stable=True)
    ranked, right = probabilities[order], (answers == targets.cpu())[order].double()
    enough = right.cumsum(0) / torch.arange(1, len(right) + 1) >= accuracy
    # Rows of one probability are answered together or not at all.
    last_of_its_kind = torch.cat([ranked[1:] < ranked[:-1], torch.tensor([True])])
    fits = torch.nonzero(enough & last_of_its_kind)
    return float(ranked[fits[-1, 0]]) if len(fits) else None
