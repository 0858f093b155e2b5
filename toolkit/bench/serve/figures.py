"""What a bench of a server saw -> figures; serve_report.py says them in words."""

import statistics
from collections.abc import Sequence

import numpy as np

from ptexport.toolkit.bench.report import Figure
from ptexport.toolkit.bench.serve.serve import Results

PERCENTILES = (50, 95, 99)


def figures_of(results: Results) -> dict[str, Figure]:
    """Make the figures, by name."""
    figures = [
        Figure.of("call/throughput", _rates(results.calls_s), "/s"),
        *_latencies("call", results.calls_s),
        *_ratios(results),
    ]
    for kind, runs in (("closed", results.closed), ("open", results.open)):
        for name, seen in runs.items():
            figures += [
                Figure.of(f"{kind}/throughput/{name}", [s.answered for s in seen], "/s"),
                *_latencies(kind, [s.latencies_s for s in seen], f"/{name}"),
                Figure.of(f"{kind}/failed/{name}", [sum(s.failures.values()) for s in seen], "requests", "lower"),
                Figure.of(f"{kind}/generator_cpu/{name}", [s.cpu for s in seen], "CPUs"),
            ]
            if kind == "open":
                figures.append(_percentile(f"open/late/{name}", [s.late_s for s in seen], 99))
                thirds = [_first_and_last_third_ms(s.latencies_s) for s in seen]
                figures += [
                    Figure.of(f"open/{third}_third/{name}", ms, "ms")
                    for third, ms in zip(("first", "last"), zip(*thirds, strict=True), strict=True)
                ]
    return {figure.name: figure for figure in figures}


def _ratios(results: Results) -> list[Figure]:
    """Hold the server against Engine.predict in the same round: a slow machine slows both, so reports compare these."""
    calls_ms = [_percentile_ms(seconds, 50) for seconds in results.calls_s]
    rates = zip(results.closed[best_clients(results)], _rates(results.calls_s), strict=True)
    slower = [statistics.median(asked / called for called, asked in pairs) for pairs in results.pairs_s]
    more_ms = [1000 * statistics.median(asked - called for called, asked in pairs) for pairs in results.pairs_s]
    figures = [
        Figure.of("ratio/throughput", [seen.answered / alone for seen, alone in rates], "x", "higher"),
        Figure.of("ratio/p50", slower, "x", "lower"),
        Figure.of("overhead/p50", more_ms, "ms"),
        Figure.of("turns/call", [1000 * called for pairs in results.pairs_s for called, _ in pairs], "ms"),
        Figure.of("turns/request", [1000 * asked for pairs in results.pairs_s for _, asked in pairs], "ms"),
    ]
    for percent, rounds in results.open.items():
        if percent < 100:  # above, latency says how long the run was
            p99_ms = [_percentile_ms(seen.latencies_s, 99) for seen in rounds]
            ratios = [p99 / alone for p99, alone in zip(p99_ms, calls_ms, strict=True)]
            figures.append(Figure.of(f"ratio/p99/{percent}", ratios, "x", "lower"))
    return figures


def _rates(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [len(seconds) / sum(seconds) for seconds in rounds]


def best_clients(results: Results) -> int:
    """Tell with how many clients most was answered."""
    return max(results.closed, key=lambda clients: statistics.median(s.answered for s in results.closed[clients]))


def _latencies(kind: str, rounds: Sequence[Sequence[float]], of: str = "") -> list[Figure]:
    return [_percentile(f"{kind}/p{percent}{of}", rounds, percent) for percent in PERCENTILES]


def _percentile(name: str, rounds: Sequence[Sequence[float]], percent: int) -> Figure:
    """Take a percentile of all rounds together: a round alone may have too few."""
    each = [_percentile_ms(seconds, percent) for seconds in rounds]
    together = _percentile_ms([value for seconds in rounds for value in seconds], percent)
    return Figure(name=name, value=together, low=min(each), high=max(each), unit="ms", better=None)


def _first_and_last_third_ms(latencies_s: Sequence[float]) -> tuple[float, float]:
    """Take the medians of what was due first and last in a run: where a queue grows they are far apart."""
    n = -(-len(latencies_s) // 3)
    return _percentile_ms(latencies_s[:n], 50), _percentile_ms(latencies_s[-n:], 50)


def _percentile_ms(seconds: Sequence[float], percent: int) -> float:
    return 1000 * float(np.percentile(seconds, percent, method="inverted_cdf"))
