"""What a speed bench measured -> its report: tables, plots and a verdict."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, median_interval, now, this_machine
from ptexport.toolkit.bench.turns import Plan, Results, how_measured
from ptexport.toolkit.bench.workers import Hardware

Size = tuple[int, int]
"""Texts in a call, and tokens of each, the prompt not counted."""

MB = 1e6
_CLEARLY = 0.9  # of what the first system takes
_FOOTPRINT = (
    "system", "setting", "start, s", "resident, MB", "at most, MB", "files, MB", "new task, MB", "|Δlogit|, flips",
)  # fmt: skip
_FOOTPRINT_NOTE = (
    "Start: from starting a process to its first answer, files in the page cache. Resident: after that answer; at "
    "most: after every size. New task: bytes of its files that a device with another task's lacks. The last column: "
    "answers compared with the first system's before anything was timed."
)
_CEILING_NOTE = (
    "This machine, in the same run: {sgemm:.0f} GFLOP/s in a product of large float32 matrices, {int8:.0f} "
    "billion operations a second in int8, {copy:.1f} GB/s read and written in a copy. The share is the time that the "
    "graph's products, or reading its weights once, would take at these rates over the time it "
    "takes; a graph in another precision is held against float32 too, so it may pass 100 %."
)
_SAME_QUESTION = (
    "A call is texts in, logits of the labels out, tokenisation included. All systems get the same texts in a turn, "
    "and no text is asked twice; they are words of one token each, so rows are of one length. Rivals read the same "
    "prompt and answer the same question; one that answers otherwise than a bundle in fp32 is left out."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of a graph takes.

    Attributes:
        flops: of its products, for each row.
        read_bytes: of its weights, for any number of rows; embedding tables, of which few rows are read, left out.
    """

    flops: int
    read_bytes: int


def name_of(size: Size) -> str:
    """A size's name in figures."""
    return f"{size[0]}x{size[1]}"


def speed_report(
    results: Results,
    plan: Plan,
    sizes: Sequence[Size],
    *,
    name: str,
    digests: Mapping[str, str],
    command: str,
    does: Mapping[str, str],
    cost_of: Callable[[int], Cost | None],
    hardware: Hardware,
) -> Report:
    """Say what was measured.

    Args:
        results: of the bundle, the first, and what it is held against; loads are named by `name_of`.
        plan: how much was measured.
        sizes: in the order of the table.
        name: of the bundle.
        digests: of the manifests of bundles that took part, by their names.
        command: what to type for the same.
        does: what each rival is, by name.
        cost_of: what the bundle's graph takes for a text of so many tokens; None: not known.
        hardware: that each system could use.
    """
    rivals = [f"{rival}: {does[rival]}. Here: {m.setting}." for rival, m in results.systems.items() if rival in does]
    ceiling, shares = _ceiling(results, sizes, cost_of)
    return Report(
        kind="speed",
        title=f"{name}: speed",
        made=now(),
        command=command,
        machine=this_machine(hardware.provider),
        bundles=dict(digests),
        verdict=_verdict(results, sizes),
        how=[*rivals, *how_measured(plan, hardware), _SAME_QUESTION],
        tables=[_speed_table(results, sizes), footprint_table(results), ceiling],
        plots=_plots(results, sizes),
        figures=[*speed_figures(results), *footprint_figures(results), *shares],
        left_out=results.left_out,
    )


def speed_figures(results: Results) -> list[Figure]:
    """Times by system and load, and ratios to the first system's."""
    figures = []
    for name, measured in results.systems.items():
        for load, seconds in measured.seconds.items():
            figures.append(Figure.of(f"time/{name}/{load}", [1000 * s for s in seconds], "ms"))
            if name != results.first:
                figures.append(Figure.of(f"ratio/{name}/{load}", results.ratios(name, load), "x", "higher"))
    return figures


def said_ratio(ratios: Sequence[float]) -> str:
    """Write a ratio with its spread."""
    low, high = median_interval(ratios)
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def _speed_table(results: Results, sizes: Sequence[Size]) -> Table:
    first, *others = results.systems
    rows = []
    for size in sizes:
        load = name_of(size)
        cells = [
            f"{1000 * results.median_s(name, load):.1f}, {said_ratio(results.ratios(name, load))}" for name in others
        ]
        rows.append([_said(size), f"{1000 * results.median_s(first, load):.1f}", *cells])
    ratio = (
        f"; then how many times as long as {first} in the same turn, and where that median lies with 95 %"
        if others
        else ""
    )
    return Table(
        title="Milliseconds a call, texts in, labels out",
        columns=["texts x tokens", *results.systems],
        rows=rows,
        note=f"Medians{ratio}. The prompt is not counted in the tokens.",
    )


def footprint_figures(results: Results) -> list[Figure]:
    """Starts, memory and files by system; what a rival takes is nothing of ours to keep low."""
    figures = []
    for name, measured in results.systems.items():
        better: Literal["lower"] | None = "lower" if name == results.first else None
        figures += [
            Figure.of(f"start/{name}", measured.start_s, "s"),
            Figure.of(f"resident/{name}", [measured.resident_bytes / MB], "MB", better),
            Figure.of(f"peak/{name}", [measured.peak_bytes / MB], "MB"),
            Figure.of(f"files/{name}", [measured.file_bytes / MB], "MB", better),
            Figure.of(f"task/{name}", [measured.task_bytes / MB], "MB", better),
        ]
    return figures


def footprint_table(results: Results) -> Table:
    """Starts, memory and files by system."""
    rows = []
    for name, measured in results.systems.items():
        sizes = (measured.resident_bytes, measured.peak_bytes, measured.file_bytes, measured.task_bytes)
        megabytes = [_megabytes(size) for size in sizes]
        agrees = "" if name == results.first else f"{measured.max_abs_diff:.1e}, {measured.flips}"
        rows.append([name, measured.setting, f"{statistics.median(measured.start_s):.2f}", *megabytes, agrees])
    return Table(title="Start, memory and files", columns=list(_FOOTPRINT), rows=rows, note=_FOOTPRINT_NOTE)


def _ceiling(
    results: Results, sizes: Sequence[Size], cost_of: Callable[[int], Cost | None]
) -> tuple[Table, list[Figure]]:
    """Hold the first system against what the machine could do."""
    sgemm, int8, copy = (statistics.median(results.ceiling[rate]) for rate in ("sgemm_flops", "int8_ops", "copy_bytes"))
    figures = [Figure.of(f"machine/{name}", [rate / 1e9 for rate in r], "G/s") for name, r in results.ceiling.items()]
    rows = []
    for batch, tokens in sizes:
        cost = cost_of(tokens)
        if cost is None:
            continue
        seconds, flops = results.systems[results.first].seconds[name_of((batch, tokens))], batch * cost.flops
        computing, reading = flops / sgemm, cost.read_bytes / copy
        shares = [max(computing, reading) / s for s in seconds]
        figures.append(Figure.of(f"share/{name_of((batch, tokens))}", shares, "of the ceiling"))
        cells = [f"{flops / 1e9:.2f}", f"{flops / statistics.median(seconds) / 1e9:.0f}"]
        limit = "arithmetic" if computing >= reading else "reading the weights"
        rows.append([_said((batch, tokens)), *cells, f"{statistics.median(shares):.0%}", limit])
    table = Table(
        title="How near to this machine's ceiling",
        columns=["texts x tokens", "GFLOP", "GFLOP/s", "share reached", "limited by"],
        rows=rows,
        note=_CEILING_NOTE.format(sgemm=sgemm / 1e9, int8=int8 / 1e9, copy=copy / 1e9),
    )
    return table, figures


def _verdict(results: Results, sizes: Sequence[Size]) -> list[str]:
    first, *others = results.systems
    sentences = [_compare_times(results, sizes, name) + _footprint_lost(results, name) for name in others]
    return sentences or [f"{first} was measured alone; --against names what to compare it with."]


def _compare_times(results: Results, sizes: Sequence[Size], name: str) -> str:
    """Say at which sizes the first system is ahead of another, and where not."""
    first = results.first
    ratios = {size: results.ratios(name, name_of(size)) for size in sizes}
    which = f"{name} ({results.systems[name].setting})"
    times = f"it takes {_span([statistics.median(values) for values in ratios.values()])} times as long"
    lost = [f"{_said(s)}: {said_ratio(r)}" for s, r in ratios.items() if statistics.median(r) < 1]
    close = [f"{_said(s)}: {said_ratio(r)}" for s, r in ratios.items() if min(r) < 1 <= statistics.median(r)]
    if lost:
        where = "every size" if len(lost) == len(sizes) else "; ".join(lost)
        return f"{first} loses to {which} at {where}; {times}."
    if close:
        return f"{first} is ahead of {which} at every size, {times}, if not in every turn: {'; '.join(close)}."
    return f"{first} is ahead of {which} at every size and in every turn: {times}."


def _footprint_lost(results: Results, name: str) -> str:
    """Say in what else the first system takes clearly more than another."""
    ours, theirs = results.systems[results.first], results.systems[name]
    start_s = [statistics.median(measured.start_s) for measured in (theirs, ours)]
    lost = [f"a start of {start_s[0]:.2f} s to {start_s[1]:.2f} s"] if start_s[0] < _CLEARLY * start_s[1] else []
    for what, their_bytes, our_bytes in (
        ("of memory after the first answer", theirs.resident_bytes, ours.resident_bytes),
        ("of files", theirs.file_bytes, ours.file_bytes),
        ("for a new task", theirs.task_bytes, ours.task_bytes),
    ):
        if their_bytes < _CLEARLY * our_bytes:
            lost.append(f"{_megabytes(their_bytes)} to {_megabytes(our_bytes)} MB {what}")
    return f" {name} takes less: {', '.join(lost)}." if lost else ""


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / MB:.0f}" if size_bytes >= 10 * MB else f"{size_bytes / MB:.2f}"


def _said(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _plots(results: Results, sizes: Sequence[Size]) -> list[Plot]:
    plots = []
    for tokens in sorted({tokens for _, tokens in sizes}):
        batches = [batch for batch, t in sizes if t == tokens]
        if len(batches) < 2:
            continue
        times = {name: [results.median_s(name, name_of((b, tokens))) for b in batches] for name in results.systems}
        latency = [Series(name=n, x=[float(b) for b in batches], y=[1000 * s for s in t]) for n, t in times.items()]
        throughput = [
            Series(name=n, x=[1000 * s for s in t], y=[b / s for b, s in zip(batches, t, strict=True)])
            for n, t in times.items()
        ]
        calls, ms, rate = "texts in a call", "ms a call", "texts a second"
        title = f"latency, {tokens} tokens"
        plots.append(Plot(title=title, x_label=calls, y_label=ms, series=latency, log_x=True, log_y=True))
        title = f"throughput, {tokens} tokens"
        plots.append(Plot(title=title, x_label=ms, y_label=rate, series=throughput, log_x=True))
    return plots
