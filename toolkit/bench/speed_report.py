"""What a speed bench measured -> its report: tables, plots and a verdict."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, now, this_machine
from ptexport.toolkit.bench.speed import COMPARED, PAUSE_S, WARM_UP, Measured, Plan, Results, Size, median_ms, ratios

MB = 1e6


def speed_report(
    results: Results,
    plan: Plan,
    *,
    title: str,
    command: str,
    bundles: Mapping[str, str],
    does: Mapping[str, str],
    flops_of: Callable[[int], int | None],
    threads: int,
) -> Report:
    """Say what was measured.

    Args:
        results: of the bundle, the first, and what it is held against.
        plan: how much was measured.
        title: of the page.
        command: what to type for the same.
        bundles: digests of manifests, by name.
        does: what each rival is, by name.
        flops_of: FLOPs that the bundle's graph takes for a row of so many tokens, prompt not counted; None: not known.
        threads: CPUs that each system may use.
    """
    figures: list[Figure] = []
    speed = _speed_table(results, plan, figures)
    footprint = _footprint_table(results, figures)
    ceiling = _ceiling_table(results, plan, flops_of, figures)
    return Report(
        kind="speed",
        title=title,
        made=now(),
        command=command,
        machine=this_machine(),
        bundles=dict(bundles),
        verdict=_verdict(results, plan),
        how=_how(results, plan, does, threads),
        tables=[speed, footprint, ceiling],
        plots=_plots(results, plan),
        figures=figures,
        left_out=results.left_out,
    )


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _said(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _speed_table(results: Results, plan: Plan, figures: list[Figure]) -> Table:
    first, *others = results.systems
    rows = []
    for size in plan.sizes:
        seconds = results.systems[first].seconds[size]
        figures.append(Figure.of(f"time/{first}/{_name(size)}", [1000 * s for s in seconds], "ms"))
        cells = [_said(size), f"{median_ms(seconds):.1f}"]
        for name in others:
            theirs = results.systems[name].seconds[size]
            ratio = Figure.of(f"ratio/{name}/{_name(size)}", ratios(results, name, size), "x", "higher")
            figures += [Figure.of(f"time/{name}/{_name(size)}", [1000 * s for s in theirs], "ms"), ratio]
            cells.append(f"{median_ms(theirs):.1f}, {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        rows.append(cells)
    return Table(
        title="Milliseconds a call, texts in, labels out",
        columns=["texts x tokens", *results.systems],
        rows=rows,
        note=f"Medians; then how many times as long as {first} in the same turn, the median with the smallest and the "
        "largest turn. The prompt is not counted in the tokens."
        if others
        else "Medians. The prompt is not counted in the tokens.",
    )


def _footprint_table(results: Results, figures: list[Figure]) -> Table:
    rows = []
    for name, measured in results.systems.items():
        start = Figure.of(f"start/{name}", measured.start_s, "s")
        figures += [
            start,
            Figure.of(f"resident/{name}", [measured.resident_bytes / MB], "MB", "lower"),
            Figure.of(f"peak/{name}", [measured.peak_bytes / MB], "MB"),
            Figure.of(f"files/{name}", [measured.file_bytes / MB], "MB", "lower"),
            Figure.of(f"task/{name}", [measured.task_bytes / MB], "MB", "lower"),
        ]
        sizes = (measured.resident_bytes, measured.peak_bytes, measured.file_bytes, measured.task_bytes)
        megabytes = [f"{size / MB:.0f}" if size >= 10 * MB else f"{size / MB:.2f}" for size in sizes]
        agrees = "" if name == next(iter(results.systems)) else f"{measured.max_abs_diff:.1e}, {measured.flips}"
        rows.append([name, measured.setting, f"{start.value:.2f}", *megabytes, agrees])
    return Table(
        title="Start, memory and files",
        columns=[
            "system", "setting", "start, s", "resident, MB", "at most, MB", "files, MB", "new task, MB", "|Δlogit|, flips",
        ],
        rows=rows,
        note="Start: from starting a process to its first answer, files in the page cache. Resident: after that answer; at "
        "most: after every size. New task: bytes of its files that a device with another task's lacks. The last column: "
        f"answers to {sum(batch for batch, _ in COMPARED)} texts, compared before anything was timed.",
    )  # fmt: skip


def _ceiling_table(results: Results, plan: Plan, flops_of: Callable[[int], int | None], figures: list[Figure]) -> Table:
    first = next(iter(results.systems))
    measured = results.systems[first]
    sgemm, int8, copy = (
        statistics.median(results.ceiling[name]) for name in ("sgemm_flops", "int8_ops", "copied_bytes")
    )
    for name, rate in results.ceiling.items():
        figures.append(Figure.of(f"machine/{name}", [value / 1e9 for value in rate], "G/s"))
    rows = []
    for batch, tokens in plan.sizes:
        flops = flops_of(tokens)
        if flops is None:
            continue
        seconds = statistics.median(measured.seconds[batch, tokens])
        rate, needed = batch * flops / seconds, max(batch * flops / sgemm, measured.file_bytes / copy)
        figures.append(Figure.of(f"share/{_name((batch, tokens))}", [needed / seconds], "of the ceiling"))
        limit = "arithmetic" if batch * flops / sgemm >= measured.file_bytes / copy else "reading the weights"
        cells = f"{batch * flops / 1e9:.2f}", f"{rate / 1e9:.0f}", f"{needed / seconds:.0%}"
        rows.append([_said((batch, tokens)), *cells, limit])
    return Table(
        title="How near to this machine's ceiling",
        columns=["texts x tokens", "GFLOP", "GFLOP/s", "share reached", "limited by"],
        rows=rows,
        note=f"This machine, in the same run: {sgemm / 1e9:.0f} GFLOP/s in a product of 2048 x 2048 float32 matrices, "
        f"{int8 / 1e9:.0f} billion operations a second in int8, {copy / 1e9:.1f} GB/s read and written in a copy. The share is "
        "the time that the graph's products, or reading its files once, would take at these rates over the time it takes; "
        "a graph in int8 is held against float32 too, so it may pass 100 %.",
    )


def _verdict(results: Results, plan: Plan) -> list[str]:
    first, *others = results.systems
    sentences = []
    for name in others:
        by_size = {size: ratios(results, name, size) for size in plan.sizes}
        medians = [statistics.median(values) for values in by_size.values()]
        slower = [
            f"{_said(size)} ({statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f})"
            for size, values in by_size.items()
            if statistics.median(values) < 1
        ]
        if not slower:
            span = _span(medians)
            sentences.append(f"{first} is ahead of {name} at every size measured: {name} takes {span} times as long.")
        elif len(slower) == len(by_size):
            sentences.append(f"{first} loses to {name} at every size: {name} takes {_span(medians)} times as long.")
        else:
            best = max(medians)
            sentences.append(
                f"{first} loses to {name} at {', '.join(slower)}; elsewhere {name} takes up to {best:.2f} times as long."
            )
    return sentences or [f"{first} was measured alone; --against names what to compare it with."]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _how(results: Results, plan: Plan, does: Mapping[str, str], threads: int) -> list[str]:
    return [
        f"{name}: {does[name]}. Here: {measured.setting}." for name, measured in results.systems.items() if name in does
    ] + [
        f"Each system has a process of its own, held to the same {threads} CPUs; they take turns, call by call, with "
        f"{PAUSE_S:g} s between so that one's threads have stopped spinning before the next begins; who is first rotates.",
        f"{WARM_UP} turns warm up, then {plan.rounds} are timed, or {plan.few_rounds} at least where a size takes more than "
        f"{plan.seconds:.0f} s in all.",
        "A call is texts in, logits of the labels out, tokenisation included. All texts of a turn are the same for all "
        "systems, and no text is asked twice; they are words of one token each, so no row is padded.",
        "Rivals read the same prompt and answer the same question; one that answers otherwise is left out.",
    ]


def _plots(results: Results, plan: Plan) -> list[Plot]:
    def series(name: str, measured: Measured, tokens: int, *, throughput: bool) -> Series:
        batches = [batch for batch, t in plan.sizes if t == tokens]
        milliseconds = [median_ms(measured.seconds[batch, tokens]) for batch in batches]
        if not throughput:
            return Series(name=name, x=[float(batch) for batch in batches], y=milliseconds)
        rates = [1000 * batch / ms for batch, ms in zip(batches, milliseconds, strict=True)]
        return Series(name=name, x=milliseconds, y=rates)

    tokens = max({tokens for _, tokens in plan.sizes}, key=lambda t: (sum(u == t for _, u in plan.sizes), t == 28))
    if sum(t == tokens for _, t in plan.sizes) < 2:
        return []
    both = results.systems.items()
    return [
        Plot(
            title=f"latency against batch, {tokens} tokens",
            x_label="texts in a call",
            y_label="ms a call",
            series=[series(name, measured, tokens, throughput=False) for name, measured in both],
            log_x=True,
            log_y=True,
        ),
        Plot(
            title=f"throughput against latency, {tokens} tokens",
            x_label="ms a call",
            y_label="texts a second",
            series=[series(name, measured, tokens, throughput=True) for name, measured in both],
            log_x=True,
        ),
    ]
