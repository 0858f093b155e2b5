"""How long a call takes at a setting, for rivals that try several beforehand."""

import math
import statistics
import time
from collections.abc import Callable

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.texts import make_texts, plain_words

_SIZES, _ROUNDS, _WARM_UP = ((1, 28), (8, 28), (8, 100)), 5, 2


def time_calls(case: Case, logits: Callable[[list[str]], object]) -> float:
    """Time calls on texts of some sizes.

    Returns:
        Seconds a call, the geometric mean over the sizes.
    """
    words = plain_words(case.tokenizer())
    medians = []
    for size in _SIZES:
        times = []
        for number in range(_ROUNDS + _WARM_UP):
            texts = make_texts(words, *size, f"try {number}")
            started = time.perf_counter()
            logits(texts)
            times.append(time.perf_counter() - started)
        medians.append(statistics.median(times[_WARM_UP:]))
    return math.prod(medians) ** (1 / len(medians))
