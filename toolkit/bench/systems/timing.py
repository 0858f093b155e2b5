"""A setting of a baseline -> its latency, to choose the fastest setting beforehand."""

import math
import statistics
import time
from collections.abc import Callable

from ptexport.toolkit.bench.synthetic_texts import make_texts, one_token_words
from ptexport.toolkit.bench.systems.case import Case

_SIZES, _ROUNDS, _WARM_UP = ((1, 28), (8, 28), (8, 100)), 5, 2


def time_calls(case: Case, logits: Callable[[list[str]], object]) -> float:
    """Time calls with texts of several sizes.

    Returns:
        Seconds per call, the geometric mean over the sizes.
    """
    words = one_token_words(case.tokenizer())
    medians = []
    for size in _SIZES:
        times = []
        for number in range(_ROUNDS + _WARM_UP):
            texts = make_texts(words, *size, f"trial {number}")
            started = time.perf_counter()
            logits(texts)
            times.append(time.perf_counter() - started)
        medians.append(statistics.median(times[_WARM_UP:]))
    return math.prod(medians) ** (1 / len(medians))
