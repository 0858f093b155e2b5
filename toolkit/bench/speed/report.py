"""Measurements of a speed bench -> its report: tables, plots and a verdict."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ptexport.toolkit.bench.interleaved import RoundPlan, SpeedResults, describe_method
from ptexport.toolkit.bench.report import (
    BenchReport,
    Figure,
    Plot,
    Series,
    Table,
    median_interval,
    now,
    this_machine,
)
from ptexport.toolkit.bench.workers import Hardware

Size = tuple[int, int]
"""Texts per call, and tokens of each text without the prompt."""

MB = 1e6
_CLEARLY_LESS = 0.9  # of the first system's
_FOOTPRINT = (
    "system", "setting", "start, s", "memory, MB", "peak memory, MB", "files, MB", "new task, MB", "|Δlogit|, flips",
)  # fmt: skip
_FOOTPRINT_NOTE = (
    "Start: from the start of the process to its first prediction, files in the page cache. Memory: resident memory "
    "after that prediction. Peak memory: after all sizes. New task: size of the files that a device with another task "
    "on the backbone lacks. Last column: largest difference of a logit and number of label flips, relative to the "
    "first system, before timing."
)
_PEAK_NOTE = (
    "Peak rates of this machine, measured in the same run: {sgemm:.0f} GFLOP/s for a product of large float32 "
    "matrices, {int8:.0f} billion int8 operations per second, {copy:.1f} GB/s read and written in a copy. The share "
    "of peak is the larger of the times for the graph's matrix products and for reading its weights once, at these "
    "rates, divided by the latency. It is relative to float32 in every precision, so a graph in lower precision may "
    "exceed 100 %."
)
_CALLS = (
    "A call takes texts and returns the labels' logits, including tokenization. All systems get the same texts in a "
    "round, and no text occurs twice. Texts consist of words of one token each, so all texts of a call have the same "
    "length. The other systems use the same prompt for the same task; a system with logits other than those of an fp32 "
    "bundle is left out."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of running a graph.

    Attributes:
        flops: floating-point operations of its matrix products, per text.
        read_bytes: size of its weights without embedding tables, of which a call reads little.
    """

    flops: int
    read_bytes: int


def size_name(size: Size) -> str:
    """Name a size in figures: 8x28."""
    return f"{size[0]}x{size[1]}"


def speed_report(
    results: SpeedResults,
    plan: RoundPlan,
    sizes: Sequence[Size],
    *,
    name: str,
    digests: Mapping[str, str],
    command: str,
    descriptions: Mapping[str, str],
    cost_of: Callable[[int], Cost | None],
    hardware: Hardware,
) -> BenchReport:
    """Make the report of a speed bench.

    Args:
        results: measurements; the bundle is the first system, and workloads have the names of `size_name`.
        plan: how much was measured.
        sizes: sizes in the order of the table.
        name: name of the bundle.
        digests: manifest digests of the measured bundles, by their names.
        command: command line that made the report.
        descriptions: descriptions of the baselines, by name.
        cost_of: returns the cost of the bundle's graph for a number of tokens; None: not known.
        hardware: hardware that each system could use.
    """
    described = [
        f"{n}: {descriptions[n]}. Setting: {s.setting}." for n, s in results.systems.items() if n in descriptions
    ]
    peak, shares = _peak(results, sizes, cost_of)
    return BenchReport(
        kind="speed",
        title=f"{name}: speed",
        made=now(),
        command=command,
        machine=this_machine(hardware.provider),
        bundles=dict(digests),
        verdict=_verdict(results, sizes),
        how=[*described, *describe_method(plan, hardware), _CALLS],
        tables=[_latency_table(results, sizes), footprint_table(results), peak],
        plots=_plots(results, sizes),
        figures=[*speed_figures(results), *footprint_figures(results), *shares],
        left_out=results.left_out,
    )


def speed_figures(results: SpeedResults) -> list[Figure]:
    """Make figures of latencies by system and workload, and of slowdowns relative to the first system."""
    figures = []
    for name, system in results.systems.items():
        for workload, seconds in system.seconds.items():
            figures.append(Figure.of(f"time/{name}/{workload}", [1000 * s for s in seconds], "ms"))
            if name != results.first:
                figures.append(Figure.of(f"ratio/{name}/{workload}", results.slowdowns(name, workload), "x", "higher"))
    return figures


def with_interval(ratios: Sequence[float]) -> str:
    """Write the median of ratios with its 95 % confidence interval: 1.16 (1.09 to 1.29)."""
    low, high = median_interval(ratios)
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def in_words(slowdowns: Sequence[float], *, brackets: bool = True) -> str:
    """Write a slowdown in words: 1.16 times slower (95 % CI 1.09 to 1.29)."""
    slower = statistics.median(slowdowns) >= 1
    ratios = slowdowns if slower else [1 / slowdown for slowdown in slowdowns]
    low, high = median_interval(ratios)
    interval = f"95 % CI {low:.2f} to {high:.2f}"
    words = f"{statistics.median(ratios):.2f} times {'slower' if slower else 'faster'}"
    return f"{words} ({interval})" if brackets else f"{words}, {interval}"


def _latency_table(results: SpeedResults, sizes: Sequence[Size]) -> Table:
    first, *others = results.systems
    rows = []
    for size in sizes:
        workload = size_name(size)
        cells = [
            f"{1000 * results.median_s(name, workload):.1f}, {with_interval(results.slowdowns(name, workload))}"
            for name in others
        ]
        rows.append([_shown(size), f"{1000 * results.median_s(first, workload):.1f}", *cells])
    slowdown = (
        f" Then the ratio to the latency of {first} in the same round, with its 95 % confidence interval: 2 is twice "
        "as slow."
        if others
        else ""
    )
    return Table(
        title="Latency in ms per call",
        columns=["texts x tokens", *results.systems],
        rows=rows,
        note=f"Median latency, from texts to labels.{slowdown} Tokens do not include the prompt.",
    )


def footprint_figures(results: SpeedResults) -> list[Figure]:
    """Make figures of start times, memory and files; only those of the first system are compared between reports."""
    figures = []
    for name, system in results.systems.items():
        better: Literal["lower"] | None = "lower" if name == results.first else None
        figures += [
            Figure.of(f"start/{name}", system.start_s, "s"),
            Figure.of(f"resident/{name}", [system.resident_bytes / MB], "MB", better),
            Figure.of(f"peak/{name}", [system.peak_bytes / MB], "MB"),
            Figure.of(f"files/{name}", [system.file_bytes / MB], "MB", better),
            Figure.of(f"task/{name}", [system.task_bytes / MB], "MB", better),
        ]
    return figures


def footprint_table(results: SpeedResults) -> Table:
    """Make the table of start times, memory and files by system."""
    rows = []
    for name, system in results.systems.items():
        sizes = (system.resident_bytes, system.peak_bytes, system.file_bytes, system.task_bytes)
        megabytes = [_megabytes(size) for size in sizes]
        differences = "" if name == results.first else f"{system.max_abs_diff:.1e}, {system.flips}"
        rows.append([name, system.setting, f"{statistics.median(system.start_s):.2f}", *megabytes, differences])
    return Table(title="Start, memory and files", columns=list(_FOOTPRINT), rows=rows, note=_FOOTPRINT_NOTE)


def _peak(
    results: SpeedResults, sizes: Sequence[Size], cost_of: Callable[[int], Cost | None]
) -> tuple[Table, list[Figure]]:
    """Compare the first system with the machine's peak rates."""
    peak = results.peak_rates
    sgemm, int8, copy = (statistics.median(peak[rate]) for rate in ("sgemm_flops", "int8_ops", "copy_bytes"))
    figures = [Figure.of(f"machine/{name}", [rate / 1e9 for rate in rates], "G/s") for name, rates in peak.items()]
    rows = []
    for batch, tokens in sizes:
        cost = cost_of(tokens)
        if cost is None:
            continue
        seconds, flops = results.systems[results.first].seconds[size_name((batch, tokens))], batch * cost.flops
        computing, reading = flops / sgemm, cost.read_bytes / copy
        shares = [max(computing, reading) / s for s in seconds]
        figures.append(Figure.of(f"share/{size_name((batch, tokens))}", shares, "of peak"))
        cells = [f"{flops / 1e9:.2f}", f"{flops / statistics.median(seconds) / 1e9:.0f}"]
        limit = "arithmetic" if computing >= reading else "reading the weights"
        rows.append([_shown((batch, tokens)), *cells, f"{statistics.median(shares):.0%}", limit])
    table = Table(
        title="Share of this machine's peak rates",
        columns=["texts x tokens", "GFLOP", "GFLOP/s", "share of peak", "limited by"],
        rows=rows,
        note=_PEAK_NOTE.format(sgemm=sgemm / 1e9, int8=int8 / 1e9, copy=copy / 1e9),
    )
    return table, figures


def _verdict(results: SpeedResults, sizes: Sequence[Size]) -> list[str]:
    first, *others = results.systems
    sentences = [_compare_latency(results, sizes, name) + _smaller_footprint(results, name) for name in others]
    return sentences or [f"Only {first} was measured; name other systems with --against."]


def _compare_latency(results: SpeedResults, sizes: Sequence[Size], name: str) -> str:
    """State at which sizes a system is slower or faster than the first, and where the interval includes 1."""
    intervals = {size: median_interval(results.slowdowns(name, size_name(size))) for size in sizes}
    slower = [size for size, (low, _) in intervals.items() if low > 1]
    faster = [size for size, (_, high) in intervals.items() if high < 1]
    unclear = [size for size in sizes if size not in slower and size not in faster]
    parts = [
        f"{_times(results, name, those, word)} than {results.first} at {_listed(those, sizes)}"
        for those, word in ((slower, "slower"), (faster, "faster"))
        if those
    ]
    if unclear:
        ratios = [in_words(results.slowdowns(name, size_name(size)), brackets=False) for size in unclear]
        found = "; ".join(f"{_shown(size)}: {ratio}" for size, ratio in zip(unclear, ratios, strict=True))
        found = found if len(unclear) > 1 else ratios[0]
        parts.append(f"neither clearly slower nor faster than {results.first} at {_listed(unclear, sizes)} ({found})")
    return f"{name} ({results.systems[name].setting}) is {', and '.join(parts)}."


def _times(results: SpeedResults, name: str, sizes: Sequence[Size], word: str) -> str:
    """Write how many times slower or faster a system is: one ratio with its interval, or the range of medians."""
    slowdowns = [results.slowdowns(name, size_name(size)) for size in sizes]
    if len(sizes) == 1:
        return in_words(slowdowns[0])
    medians = [statistics.median(values) for values in slowdowns]
    medians = medians if word == "slower" else [1 / median for median in medians]
    low, high = f"{min(medians):.2f}", f"{max(medians):.2f}"
    return f"{low if low == high else f'{low} to {high}'} times {word}"


def _listed(some: Sequence[Size], sizes: Sequence[Size]) -> str:
    if len(some) == len(sizes):
        return "every size" if len(sizes) > 1 else _shown(some[0])
    return ", ".join(map(_shown, some))


def _smaller_footprint(results: SpeedResults, name: str) -> str:
    """State in what else a system needs clearly less than the first."""
    ours, theirs = results.systems[results.first], results.systems[name]
    start_s = [statistics.median(system.start_s) for system in (theirs, ours)]
    smaller = [f"{start_s[0]:.2f} s to start (not {start_s[1]:.2f})"] if start_s[0] < _CLEARLY_LESS * start_s[1] else []
    for what, their_bytes, our_bytes in (
        ("of memory after the first prediction", theirs.resident_bytes, ours.resident_bytes),
        ("of files", theirs.file_bytes, ours.file_bytes),
        ("for a new task", theirs.task_bytes, ours.task_bytes),
    ):
        if their_bytes < _CLEARLY_LESS * our_bytes:
            smaller.append(f"{_megabytes(their_bytes)} MB {what} (not {_megabytes(our_bytes)})")
    return f" {name} needs less: {', '.join(smaller)}." if smaller else ""


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / MB:.0f}" if size_bytes >= 10 * MB else f"{size_bytes / MB:.2f}"


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _plots(results: SpeedResults, sizes: Sequence[Size]) -> list[Plot]:
    plots = []
    for tokens in sorted({tokens for _, tokens in sizes}):
        batches = [batch for batch, t in sizes if t == tokens]
        if len(batches) < 2:
            continue
        times = {name: [results.median_s(name, size_name((b, tokens))) for b in batches] for name in results.systems}
        latency = [Series(name=n, x=[float(b) for b in batches], y=[1000 * s for s in t]) for n, t in times.items()]
        throughput = [
            Series(name=n, x=[1000 * s for s in t], y=[b / s for b, s in zip(batches, t, strict=True)])
            for n, t in times.items()
        ]
        calls, ms, rate = "texts per call", "latency, ms", "throughput, texts/s"
        title = f"latency, {tokens} tokens"
        plots.append(Plot(title=title, x_label=calls, y_label=ms, series=latency, log_x=True, log_y=True))
        title = f"throughput, {tokens} tokens"
        plots.append(Plot(title=title, x_label=ms, y_label=rate, series=throughput, log_x=True))
    return plots
