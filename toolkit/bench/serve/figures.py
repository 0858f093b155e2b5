"""Measurements of a server -> figures."""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from ptexport.toolkit.bench.report import Figure
from ptexport.toolkit.bench.serve.limits_report import figures_of_limits
from ptexport.toolkit.bench.serve.plan import ServeResults, Turn

PERCENTILES = (50, 95, 99)


def figures_of(results: ServeResults) -> dict[str, Figure]:
    """Make the figures, by name."""
    figures = [
        Figure.of("call/throughput", _rates(results.calls_s), "/s"),
        *_latencies("call", results.calls_s),
        *_ratios(results),
        *figures_of_limits(results),
    ]
    for kind, runs in (("closed", results.closed), ("open", results.open)):
        for name, samples in runs.items():
            figures += [
                Figure.of(f"{kind}/throughput/{name}", [s.throughput for s in samples], "/s"),
                *_latencies(kind, [s.latencies_s for s in samples], f"/{name}"),
                Figure.of(f"{kind}/failed/{name}", [sum(s.failures.values()) for s in samples], "requests", "lower"),
                Figure.of(f"{kind}/generator_cpu/{name}", [s.cpu for s in samples], "CPUs"),
            ]
            if kind == "open":
                figures.append(_percentile(f"open/late/{name}", [s.late_s for s in samples], 99))
                thirds = [_first_and_last_third_ms(s.latencies_s) for s in samples]
                figures += [
                    Figure.of(f"open/{third}_third/{name}", ms, "ms")
                    for third, ms in zip(("first", "last"), zip(*thirds, strict=True), strict=True)
                ]
    return {figure.name: figure for figure in figures}


def _ratios(results: ServeResults) -> list[Figure]:
    """Compare the server with Engine.predict in the same round; a slow machine slows down both."""
    calls_ms = [_percentile_ms(seconds, 50) for seconds in results.calls_s]
    rates = zip(results.closed[best_clients(results)], _rates(results.calls_s), strict=True)
    in_a_row = [[pair for turn in turns for pair in turn.in_a_row] for turns in results.turns]
    added_s = [[request - call for call, request in pairs] for pairs in in_a_row]
    first_added_s = [[request - call for call, request in (turn.first for turn in turns)] for turns in results.turns]
    slowdowns = [statistics.median(request / call for call, request in pairs) for pairs in in_a_row]
    figures = [
        Figure.of("ratio/throughput", [sample.throughput / rate for sample, rate in rates], "x", "higher"),
        Figure.of("ratio/p50", slowdowns, "x", "lower"),
        _percentile("overhead/p50", added_s, 50),
        _percentile("overhead/p99", added_s, 99),
        _percentile("overhead/calls/p99", [_differences(turns) for turns in results.turns], 99),
        _percentile("overhead/first/p50", first_added_s, 50),
        Figure.of("turns/call", [1000 * call for pairs in in_a_row for call, _ in pairs], "ms"),
        Figure.of("turns/request", [1000 * request for pairs in in_a_row for _, request in pairs], "ms"),
    ]
    for percent, rounds in results.open.items():
        if percent < 100:  # above, latency depends on the duration of the run
            p99_ms = [_percentile_ms(sample.latencies_s, 99) for sample in rounds]
            ratios = [p99 / call for p99, call in zip(p99_ms, calls_ms, strict=True)]
            figures.append(Figure.of(f"ratio/p99/{percent}", ratios, "x", "lower"))
    return figures


def _differences(turns: Sequence[Turn]) -> list[float]:
    """Compare calls of Engine.predict with those of the next turn: what the machine alone does to a difference."""
    return [
        later - call
        for one, other in itertools.pairwise(turns)
        for (call, _), (later, _) in zip(one.in_a_row, other.in_a_row, strict=True)
    ]


def _rates(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [len(seconds) / sum(seconds) for seconds in rounds]


def best_clients(results: ServeResults) -> int:
    """Return the number of clients with the highest throughput."""
    return max(results.closed, key=lambda clients: statistics.median(s.throughput for s in results.closed[clients]))


def _latencies(kind: str, rounds: Sequence[Sequence[float]], suffix: str = "") -> list[Figure]:
    return [_percentile(f"{kind}/p{percent}{suffix}", rounds, percent) for percent in PERCENTILES]


def _percentile(name: str, rounds: Sequence[Sequence[float]], percent: int) -> Figure:
    """Compute a percentile over all rounds, since one round may have too few samples."""
    each = [_percentile_ms(seconds, percent) for seconds in rounds]
    together = _percentile_ms([value for seconds in rounds for value in seconds], percent)
    return Figure(name=name, value=together, low=min(each), high=max(each), unit="ms", better=None)


def _first_and_last_third_ms(latencies_s: Sequence[float]) -> tuple[float, float]:
    """Compute the median latency of the first and last third of a run; a growing queue makes the last one larger."""
    n = -(-len(latencies_s) // 3)
    return _percentile_ms(latencies_s[:n], 50), _percentile_ms(latencies_s[-n:], 50)


def _percentile_ms(seconds: Sequence[float], percent: int) -> float:
    return 1000 * float(np.percentile(seconds, percent, method="inverted_cdf"))
