"""Figures of a server -> plots."""

from collections.abc import Mapping, Sequence

from ptexport.toolkit.bench.report import Figure, Plot, Series
from ptexport.toolkit.bench.serve.figures import PERCENTILES, best_clients
from ptexport.toolkit.bench.serve.plan import ServeResults
from ptexport.toolkit.bench.serve.wording import in_words, number


def plots_of(results: ServeResults, figures: Mapping[str, Figure]) -> list[Plot]:
    """Draw throughput by clients, and latency by clients and by load."""
    clients, loads = list(results.closed), list(results.open)
    rates = {
        "no server": figures["call/throughput"],
        **{in_words(n): figures[f"closed/throughput/{n}"] for n in clients},
    }
    return [
        Plot.bars(
            "Throughput by number of clients",
            "throughput (texts/s); line: lowest to highest round",
            [f"{name}: {number(rate.value)} texts/s" for name, rate in rates.items()],
            [rate.value for rate in rates.values()],
            [(rate.low, rate.high) for rate in rates.values()],
            highlight=1 + clients.index(best_clients(results)),
        ),
        Plot(
            title="Latency by number of clients, closed loop",
            x_label="clients",
            y_label="latency (ms)",
            series=_latency_series(figures, "closed", clients, [float(n) for n in clients]),
            log_x=True,
            log_y=True,
        ),
        Plot(
            title="Latency by load, open loop",
            x_label="due requests (texts/s)",
            y_label="latency (ms)",
            series=_latency_series(figures, "open", loads, [results.peak * load / 100 for load in loads]),
            log_y=True,
        ),
    ]


def _latency_series(figures: Mapping[str, Figure], kind: str, runs: Sequence[int], x: list[float]) -> list[Series]:
    series = []
    for percent in PERCENTILES:
        points = [figures[f"{kind}/p{percent}/{run}"] for run in runs]
        low, high = [point.low for point in points], [point.high for point in points]
        series.append(Series(name=f"p{percent}", x=x, y=[point.value for point in points], low=low, high=high))
    return series
