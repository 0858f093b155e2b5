"""Latencies of systems on the same texts -> tables, bars, and sentences that say which is slower or faster."""

import statistics
from collections.abc import Mapping

from ptexport.toolkit.bench.interleaved import SpeedResults
from ptexport.toolkit.bench.ratio import LatencyRatio
from ptexport.toolkit.bench.report import Plot, Table, median_interval

_MOST_LISTED = 4  # sizes that a sentence names


def compare_latency(results: SpeedResults, name: str, workloads: Mapping[str, str], *, subject: str, than: str) -> str:
    """State in one sentence where a system is slower or faster than the first one.

    Args:
        results: measurements.
        name: the system.
        workloads: the workloads, with their names in the sentence.
        subject: name of the system in the sentence.
        than: name of the first system in the sentence.
    """
    ratios = {shown: LatencyRatio.of(results.slowdowns(name, workload)) for workload, shown in workloads.items()}
    alike = {shown: ratio for shown, ratio in ratios.items() if ratio.word == "same"}
    parts: list[str] = []
    for word in ("slower", "faster"):
        some = {shown: ratio for shown, ratio in ratios.items() if ratio.word == word}
        if some:
            parts.append(f"{_times(some, word, '' if parts else f' than {than}')} {_listed(some, workloads)}")
    if not parts:
        return f"{subject} and {than} show no measurable difference in latency {_unclear(alike, workloads)}."
    rest = f"; no measurable difference {_unclear(alike, workloads)}" if alike else ""
    return f"{subject} is {' and '.join(parts)}{rest}."


def _times(ratios: Mapping[str, LatencyRatio], word: str, than: str) -> str:
    low, high = (f"{pick(ratio.ratio for ratio in ratios.values()):.2f}" for pick in (min, max))
    interval = f"{min(r.low for r in ratios.values()):.2f} to {max(r.high for r in ratios.values()):.2f}"
    named = "95 % interval" if len(ratios) == 1 else "95 % intervals within"
    return f"{low if low == high else f'{low} to {high}'} times {word}{than} ({named} {interval})"


def _unclear(ratios: Mapping[str, LatencyRatio], workloads: Mapping[str, str]) -> str:
    if len(ratios) == len(workloads) > 1:
        low, high = min(r.low for r in ratios.values()), max(r.high for r in ratios.values())
        return f"at any size (95 % intervals within {low:.2f} to {high:.2f})"
    if len(ratios) > _MOST_LISTED:
        return _listed(ratios, workloads)
    return f"at {_in_a_row([f'{shown} ({ratio.interval})' for shown, ratio in ratios.items()])}"


def _listed(some: Mapping[str, LatencyRatio], workloads: Mapping[str, str]) -> str:
    if len(some) == len(workloads) > 1:
        return "at every size"
    if len(some) > _MOST_LISTED:
        return f"at {len(some)} of {len(workloads)} sizes"
    return f"at {_in_a_row(list(some))}"


def _in_a_row(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def spoken(name: str) -> str:
    """Name a system in a sentence: "second in fp32" instead of "second, fp32"."""
    return name.replace(", ", " in ")


def fastest_first(results: SpeedResults) -> list[str]:
    """List the systems other than the first, the fastest over all workloads first."""
    workloads = results.systems[results.first].seconds

    def slowdown(name: str) -> float:
        return statistics.geometric_mean(statistics.median(results.slowdowns(name, load)) for load in workloads)

    return sorted([name for name in results.systems if name != results.first], key=slowdown)


def latency_table(results: SpeedResults, workload: str, batch: int, *, title: str, than: str) -> Table:
    """Make the table of a workload, the fastest system first.

    Args:
        results: measurements.
        workload: its name.
        batch: texts per call.
        title: title of the table.
        than: name of the first system in the heading of the comparison.
    """
    names, rows = _by_latency(results, workload), []
    for name in names:
        seconds = results.median_s(name, workload)
        cells = [name, f"{1000 * seconds:.1f}", _rate(batch / seconds)]
        if len(names) > 1:
            ratio = LatencyRatio.of(results.slowdowns(name, workload))
            cells += ["", ""] if name == results.first else [ratio.words, ratio.interval]
        rows.append(cells)
    compared = [f"compared with {than}", "95 % interval"] if len(names) > 1 else []
    columns = ["system", "latency (ms)", "throughput (texts/s)", *compared]
    return Table(title=title, columns=columns, rows=rows, highlight=names.index(results.first))


def latency_bars(results: SpeedResults, workload: str, *, title: str) -> Plot:
    """Draw the latencies of a workload, the fastest system first."""
    names, labels = _by_latency(results, workload), []
    for name in names:
        ratio = LatencyRatio.of(results.slowdowns(name, workload))
        compared = "" if name == results.first else f", {ratio.words}"
        labels.append(f"{name}: {1000 * results.median_s(name, workload):.1f} ms{compared}")
    intervals = [median_interval(results.systems[name].seconds[workload]) for name in names]
    return Plot.bars(
        title,
        "latency per call (ms); line: 95 % interval",
        labels,
        [1000 * results.median_s(name, workload) for name in names],
        [(1000 * low, 1000 * high) for low, high in intervals],
        highlight=names.index(results.first),
    )


def _by_latency(results: SpeedResults, workload: str) -> list[str]:
    return sorted(results.systems, key=lambda name: results.median_s(name, workload))


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"
