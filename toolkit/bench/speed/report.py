"""Measurements of a speed bench -> its report: a verdict, bars and tables."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ptexport.toolkit.bench.interleaved import RoundPlan, SpeedResults, describe_method
from ptexport.toolkit.bench.ratio import HOW
from ptexport.toolkit.bench.report import BenchReport, Figure, Plot, Table, now, this_machine
from ptexport.toolkit.bench.speed.footprint import footprint_figures, footprint_tables, memory_bars, needs_less
from ptexport.toolkit.bench.speed.latency import compare_latency, fastest_first, latency_bars, latency_table, spoken
from ptexport.toolkit.bench.workers import Hardware

Size = tuple[int, int]
"""Texts per call, and tokens of each text without the prompt."""

_BUNDLE = "the bundle"
_LATENCY_NOTE = (
    "Median latency of a call, from texts to logits, and texts per second at that latency. The tokens of a text do not "
    "include the prompt."
)
_PEAK_NOTE = (
    "Peak rates of this machine, measured in the same run: {sgemm:.0f} GFLOP/s for a product of large float32 "
    "matrices, {int8:.0f} billion int8 operations per second, {copy:.1f} GB/s read and written in a copy. The share "
    "of peak is the larger of the times for the graph's matrix products and for reading its weights once, at these "
    "rates, divided by the latency. It is relative to float32 in every precision, so a graph in lower precision may "
    "exceed 100 %."
)
_CALLS = (
    "Sizes are texts per call x tokens per text. A call takes texts and returns the labels' logits; tokenization is "
    "included. All systems get the same texts in a round, and no text occurs twice. Texts consist of words of one "
    "token each, so all texts of a call have the same length. The other systems use the same prompt for the same task; "
    "a system with logits other than those of an fp32 bundle is left out."
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
    described = [f"{name}: {descriptions[name]}." for name in results.systems if name in descriptions]
    peak, shares = _peak(results, sizes, cost_of)
    return BenchReport(
        kind="speed",
        title=f"{name}: speed",
        made=now(),
        command=command,
        machine=this_machine(hardware.provider),
        bundles=dict(digests),
        verdict=_verdict(results, sizes),
        how=[HOW.format(first=results.first), *described, *describe_method(plan, hardware), _CALLS],
        tables=[*_latency_tables(results, sizes), *footprint_tables(results), peak],
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


def _latency_tables(results: SpeedResults, sizes: Sequence[Size]) -> list[Table]:
    tables = [
        latency_table(
            results,
            size_name(size),
            size[0],
            title=f"Latency and throughput at {_described(size)}",
            than=_BUNDLE,
        )
        for size in sizes
    ]
    return [*tables[:-1], msgspec.structs.replace(tables[-1], note=_LATENCY_NOTE)]


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
        figures.append(Figure.of(f"work/{size_name((batch, tokens))}", [flops / 1e9], "GFLOP"))
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
    """State how each system compares with the first, the fastest first."""
    shown = {size_name(size): _shown(size) for size in sizes}
    sentences = []
    for name in fastest_first(results):
        subject = _subject(results, name)
        sentences.append(compare_latency(results, name, shown, subject=subject, than=_BUNDLE))
        sentences += needs_less(results, name, subject=spoken(name), than=_BUNDLE)
    if sentences:
        return sentences
    latencies = [f"{1000 * results.median_s(results.first, load):.1f} ms at {size}" for load, size in shown.items()]
    return [f"The bundle has a latency of {', '.join(latencies)}; add other systems with --against."]


def _subject(results: SpeedResults, name: str) -> str:
    """Name a system in a sentence, with its setting if its precision is not the first system's."""
    precision, first = (results.systems[system].setting.partition(",")[0] for system in (name, results.first))
    shown = spoken(name)
    return shown if precision == first or precision in name else f"{shown} ({results.systems[name].setting})"


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _described(size: Size) -> str:
    return f"{_shown(size)}: {size[0]} text{'s' if size[0] > 1 else ''} of {size[1]} tokens"


def _plots(results: SpeedResults, sizes: Sequence[Size]) -> list[Plot]:
    latencies = [latency_bars(results, size_name(size), title=f"Latency at {_described(size)}") for size in sizes]
    return [*latencies, memory_bars(results)]
