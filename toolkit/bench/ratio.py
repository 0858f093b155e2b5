"""The one definition of slower and faster, for all reports."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ptexport.toolkit.bench.report import median_interval

HOW = (
    "Slower and faster: the latencies of two systems in the same round, the larger divided by the smaller; the median "
    "of all rounds, with its 95 % interval. If the interval of the ratio includes 1, there is no measurable "
    "difference: then the interval is of the other system's latency divided by that of {first}."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRatio:
    """How much slower or faster a system is than the first one.

    Attributes:
        word: "slower" or "faster" if the 95 % interval excludes 1, else "same".
        ratio: the larger latency divided by the smaller; the other system's divided by the first's for "same".
        low: lower end of the 95 % interval of the ratio.
        high: upper end of the interval.
    """

    word: Literal["slower", "faster", "same"]
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, slowdowns: Sequence[float]) -> "LatencyRatio":
        """Compare by the ratios of the other system's latency to the first's, one per round."""
        return cls.between(statistics.median(slowdowns), *median_interval(slowdowns))

    @classmethod
    def between(cls, ratio: float, low: float, high: float) -> "LatencyRatio":
        """Compare by the ratio of the other system's latency to the first's, and its interval."""
        if high < 1:
            return cls(word="faster", ratio=1 / ratio, low=1 / high, high=1 / low)
        return cls(word="slower" if low > 1 else "same", ratio=ratio, low=low, high=high)

    @property
    def words(self) -> str:
        """For example "1.16 times slower"."""
        return "no measurable difference" if self.word == "same" else f"{self.ratio:.2f} times {self.word}"

    @property
    def interval(self) -> str:
        """For example "1.09 to 1.29"."""
        return f"{self.low:.2f} to {self.high:.2f}"
