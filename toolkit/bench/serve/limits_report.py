"""Saturation and overload of a server -> figures, tables and sentences."""

from collections.abc import Mapping, Sequence

import numpy as np

from ptexport.toolkit.bench.report import Figure, Table
from ptexport.toolkit.bench.serve.load import LoadSample
from ptexport.toolkit.bench.serve.plan import BEST_TEXTS, DEADLINE_MS, SATURATING, Overload, Saturation, ServeResults
from ptexport.toolkit.bench.serve.wording import number, spread

WINDOW_S = 0.25
BACK = 2.0
"""p99 is back when that of a window is at most this many times that before the overload."""
REFUSED, EXPIRED = 429, 504
LATE_MS, BUSY = 10.0, 0.8
"""Lateness (p99) and share of a CPU from which the load generator is called the limit of an overload."""


def figures_of_limits(results: ServeResults) -> list[Figure]:
    """Make the figures of saturation and overload."""
    figures: list[Figure] = []
    for one in results.saturations:
        name = lengths_name(one)
        batched, single = [s.throughput for s in one.batched], [s.throughput for s in one.single]
        of_best = [rate / best for rate, best in zip(batched, one.best, strict=True)]
        of_single = [rate / alone for rate, alone in zip(batched, single, strict=True)]
        figures += [
            Figure.of(f"saturation/best/{name}", one.best, "/s"),
            Figure.of(f"saturation/batched/{name}", batched, "/s"),
            Figure.of(f"saturation/single/{name}", single, "/s"),
            Figure.of(f"ratio/saturation/best/{name}", of_best, "x", "higher"),
            Figure.of(f"ratio/saturation/single/{name}", of_single, "x", "higher"),
            Figure.of(f"saturation/generator_cpu/{name}", [s.cpu for s in one.batched], "CPUs"),
        ]
        if cpus := [used for used in one.server_cpus if used is not None]:
            figures.append(Figure.of(f"saturation/server_cpu/{name}", cpus, "CPUs"))
    for factor, overload in results.overloads.items():
        figures += _of_overload(overload, f"{factor}x", results.peak)
    return figures


def lengths_name(saturation: Saturation) -> str:
    """Name the lengths of texts."""
    fewest, most = saturation.lengths
    return str(most) if fewest == most else f"{fewest}-{most}"


def goodput(sample: LoadSample) -> float:
    """Return the answers within the deadline per second."""
    pairs = zip(sample.codes, sample.took_s, strict=True)
    good = sum(code == 200 and took * 1000 <= DEADLINE_MS for code, took in pairs)
    return good / sample.seconds


def recovery_s(overload: Overload) -> float | None:
    """Return the time after an overload until p99 is back; None: it is not back at the end.

    A window of `WINDOW_S` is good if no request that was due in it failed and its p99 is at most `BACK` times that
    before the overload.
    """
    limit_s = BACK * _p99_ms(overload.calm.latencies_s) / 1000
    after = overload.after
    windows: dict[int, list[tuple[int, float]]] = {}
    for due, code, took in zip(after.due_s, after.codes, after.took_s, strict=True):
        windows.setdefault(int(due / WINDOW_S), []).append((code, took))
    for window, requests in sorted(windows.items()):
        if all(code == 200 for code, _ in requests) and _p99_ms([took for _, took in requests]) <= 1000 * limit_s:
            return window * WINDOW_S
    return None


def _of_overload(overload: Overload, name: str, peak: float) -> list[Figure]:
    over = overload.over
    good, back = goodput(over), recovery_s(overload)
    admitted = [took for took, code in zip(over.took_s, over.codes, strict=True) if code == 200]
    figures = [
        _figure(f"overload/due/{name}", _due_rate(over), "/s"),
        _figure(f"overload/goodput/{name}", good, "/s"),
        _figure(f"ratio/goodput/{name}", good / peak, "x"),
        _figure(f"overload/late/{name}", _p99_ms(over.late_s), "ms"),
        _figure(f"overload/generator_cpu/{name}", over.cpu, "CPUs"),
        _figure(f"overload/refused/{name}", over.codes.count(REFUSED), "requests"),
        _figure(f"overload/expired/{name}", over.codes.count(EXPIRED), "requests"),
        _figure(f"overload/failed/{name}", sum(_others(over).values()), "requests"),
    ]
    if admitted:
        figures.append(_figure(f"overload/p99/{name}", _p99_ms(admitted), "ms"))
    if refusals := _refusals_s(over):
        figures.append(_figure(f"overload/refusal_p99/{name}", _p99_ms(refusals), "ms"))
    if back is not None:
        figures.append(_figure(f"overload/recovery/{name}", back, "s"))
    if overload.resident_mb is not None:
        names = ("before", "most", "after")
        figures += [
            _figure(f"overload/memory_{when}/{name}", value, "MB")
            for when, value in zip(names, overload.resident_mb, strict=True)
        ]
    return figures


def _figure(name: str, value: float, unit: str) -> Figure:
    return Figure(name=name, value=value, low=value, high=value, unit=unit, better=None)


def _refusals_s(sample: LoadSample) -> list[float]:
    """Return the time from sending to refusal of each refused request."""
    rows = zip(sample.codes, sample.took_s, sample.late_s, strict=True)
    return [took - late for code, took, late in rows if code == REFUSED]


def _others(sample: LoadSample) -> dict[str, int]:
    return {kind: n for kind, n in sample.failures.items() if kind not in (str(REFUSED), str(EXPIRED))}


def _due_rate(sample: LoadSample) -> float:
    return len(sample.due_s) / sample.seconds


def _p99_ms(seconds: Sequence[float]) -> float:
    return 1000 * float(np.percentile(seconds, 99, method="inverted_cdf"))


def limits_tables(results: ServeResults, figures: Mapping[str, Figure]) -> list[Table]:
    """Lay out throughput in batches, and what becomes of requests above the capacity."""
    return [_saturation(results, figures), _overload(results, figures), _outcomes(results, figures)]


def _saturation(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = []
    for one in results.saturations:
        name = lengths_name(one)
        used = figures.get(f"saturation/server_cpu/{name}")
        rows.append(
            [
                name.replace("-", " to "),
                *(number(figures[f"saturation/{what}/{name}"].value) for what in ("batched", "best", "single")),
                "unknown" if used is None else number(used.value),
                number(figures[f"saturation/generator_cpu/{name}"].value),
            ]
        )
    return Table(
        title=f"Saturation: {SATURATING} clients, each sends its next request when it has the response",
        columns=["words", "server", "Engine.predict", "one at a time", "server's CPUs", "generator's CPUs"],
        rows=rows,
        note=f"In texts/s, of the same texts, in turns. Engine.predict has {BEST_TEXTS} texts per call and sorts them "
        "by length. One at a time: the same server with --max-batch-tokens 1.",
    )


def _overload(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    whats = ("due", "goodput", "p99", "refusal_p99", "recovery")
    return Table(
        title=f"Overload: requests with a deadline of {DEADLINE_MS} ms arrive at random times",
        columns=["load", "due", "goodput", "p99 (ms)", "refusal p99 (ms)", "recovery (s)"],
        rows=[[f"{factor} times", *_cells(figures, factor, whats)] for factor in results.overloads],
        note=f"Load: multiple of the capacity, {number(results.peak)} texts/s. Goodput: answers within the deadline "
        "per second. p99: of answers. Refusal: time from sending to the refusal. Recovery: time after the load fell to "
        f"half the capacity until, in {WINDOW_S:g} s, none failed and p99 was at most {BACK:g} times that before.",
    )


def _outcomes(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = []
    for factor, overload in results.overloads.items():
        memory = overload.resident_mb
        rows.append(
            [
                f"{factor} times",
                str(overload.over.codes.count(200)),
                *_cells(figures, factor, ("refused", "expired", "failed")),
                "unknown" if memory is None else " / ".join(f"{mb:,.0f}" for mb in memory),
                *_cells(figures, factor, ("late", "generator_cpu")),
            ]
        )
    return Table(
        title="Overload: outcomes, memory of the server, and the load generator",
        columns=["load", "200", str(REFUSED), str(EXPIRED), "failed", "memory (MB)", "late p99 (ms)", "CPUs"],
        rows=rows,
        note=f"Requests by status; {REFUSED}: refused, {EXPIRED}: the deadline passed; failed: any other outcome. "
        "Memory: before, at most and after. Late: delay of a request in the load generator. CPUs: of the load "
        "generator.",
    )


def _cells(figures: Mapping[str, Figure], factor: int, whats: Sequence[str]) -> list[str]:
    found = (figures.get(f"overload/{what}/{factor}x") for what in whats)
    return ["none" if f is None else f"{f.value:,.0f}" if f.unit == "requests" else number(f.value) for f in found]


def limits_verdict(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    """State how throughput compares and what overload does."""
    sentences = []
    for one in results.saturations:
        name = lengths_name(one)
        sentences.append(
            f"With {SATURATING} clients and texts of {name.replace('-', ' to ')} words the server "
            f"has {figures[f'ratio/saturation/best/{name}'].value:.0%} of the throughput of Engine.predict in best "
            f"batches, and {spread(figures[f'ratio/saturation/single/{name}'])} times that of one text at a time."
        )
    for factor, overload in results.overloads.items():
        back, name = recovery_s(overload), f"{factor}x"
        refusal, p99 = (figures.get(f"overload/{what}/{name}") for what in ("refusal_p99", "p99"))
        slowest = "without an answer" if p99 is None else f"with a p99 of {number(p99.value)} ms"
        refused = "none was refused" if refusal is None else f"refusals take at most {number(refusal.value)} ms (p99)"
        recovered = (
            f"p99 is not back {number(overload.after.seconds)} s after it"
            if back is None
            else f"p99 is back {back:g} s after it"
        )
        sentences.append(
            f"At {factor} times the capacity the server answers {figures[f'ratio/goodput/{name}'].value:.0%} of it "
            f"within the deadline, {slowest}; {refused}; "
            f"{recovered}."
        )
    return sentences


def limits_problems(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    """State which requests failed otherwise, and where the load generator was the limit."""
    sentences = []
    for factor, overload in results.overloads.items():
        where, name = f"At {factor} times the capacity", f"{factor}x"
        if others := _others(overload.over):
            kinds = ", ".join(f"{n} x {kind}" for kind, n in others.items())
            sentences.append(f"{where}, {sum(others.values())} of {len(overload.over.codes)} requests failed: {kinds}.")
        late, cpu = figures[f"overload/late/{name}"].value, figures[f"overload/generator_cpu/{name}"].value
        if late > LATE_MS or cpu > BUSY:
            sentences.append(
                f"{where}, the load generator could not keep up: it sent requests {number(late)} ms late (p99) and "
                f"used {cpu:.0%} of a CPU, which the server then lacked."
            )
    return sentences
