"""Bundles of one task on labelled rows, and their speed on the same rows in turn -> a report."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptexport.runtime import Engine
from ptexport.runtime.errors import BenchError
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.rows import Row, read_rows
from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, now, this_machine
from ptexport.toolkit.bench.speed.report import (
    MB,
    footprint_figures,
    footprint_table,
    said_ratio,
    speed_figures,
)
from ptexport.toolkit.bench.turns import (
    QUICK,
    Contender,
    Loads,
    Plan,
    Results,
    Texts,
    bundle_worker,
    how_measured,
    measure,
    shown_name,
)
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.evaluation.evaluate import Result, check_comparable, contrast, evaluate

PLAN = Plan(rounds=9, seconds=60, starts=1)
BATCHES = (1, 32)
N_COMPARED = 32
_Z = 1.96  # of 95 %
_HOW_JUDGED = (
    "Accuracy: each bundle on all rows, with the 95 % interval that so many rows leave (Wilson). Of two bundles on the "
    "same rows the rows that only one answers right say more."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """A quality bench, as asked for.

    Attributes:
        bundles: folders; the first is what the others are held against.
        data: file of labelled rows that none of them was trained on.
        threads: CPUs that each may use; None: all that this process may.
        quick: fewer turns.
        command: what was typed.
    """

    bundles: Sequence[Path]
    data: Path
    threads: int | None
    quick: bool
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A bundle's figures on the rows."""

    name: str
    method: str
    precision: str
    digest: str
    result: Result


def bench_quality(config: QualityConfig, report: Callable[[int, int | None], None]) -> Report:
    """Measure accuracy, then speed.

    Args:
        config: what is measured.
        report: told how many rows of a bundle, then how many turns, are done.

    Raises:
        DataError: bundles with different labels or texts, or rows that do not fit them (says which line).
        BundleError: a bundle is not what its manifest says.
        BenchError: two bundles have one name, or there are no rows.
    """
    threads = min(config.threads or available_cpus(), available_cpus())
    rows = list(read_rows(config.data))
    if not rows:
        raise BenchError(f"{config.data}: has no rows; need labelled ones")
    judged = _judge(config.bundles, rows, threads, report)
    hardware = Hardware(threads=threads)
    contenders = [
        Contender(name=one.name, start=bundle_worker(one.name, str(path), hardware), tolerance=None)
        for one, path in zip(judged, config.bundles, strict=True)
    ]
    texts = {_load(batch): partial(_some, rows, batch) for batch in BATCHES}
    loads = Loads(texts=texts, compared=[_some(rows, 1, -1), _some(rows, N_COMPARED, -2)])
    plan = QUICK if config.quick else PLAN
    results = measure(contenders, loads, plan, hardware, report)
    return _report(config, judged, results, plan, hardware)


def _judge(
    bundles: Sequence[Path], rows: Sequence[Row], threads: int, report: Callable[[int, int | None], None]
) -> list[_Judged]:
    judged: list[_Judged] = []
    first: Engine | None = None
    for path in bundles:
        with Engine.open(path, provider="cpu", threads=threads) as engine:
            check_comparable([first or engine, engine])
            result = evaluate(engine, rows, lambda done: report(done, len(rows)))
            manifest = engine.manifest
            judged.append(
                _Judged(
                    name=shown_name(path, manifest.graph.precision),
                    method=manifest.method,
                    precision=manifest.graph.precision,
                    digest=manifest.digest,
                    result=result,
                )
            )
            first = first or engine  # what a bundle says of itself stays when it is closed
    return judged


def _load(batch: int) -> str:
    return f"{batch} row{'s' if batch > 1 else ''}"


def _some(rows: Sequence[Row], batch: int, turn: int) -> Texts:
    """Draw rows for a turn, no row twice unless there are too few."""
    draw = random.Random(f"{batch} {turn}")
    chosen = draw.sample(rows, batch) if len(rows) >= batch else draw.choices(rows, k=batch)
    texts: list[str | list[str]] = []
    for row in chosen:
        if row.choices is not None:
            texts += [[row.text, choice] for choice in row.choices]
        else:
            texts.append(row.text if row.text_b is None else [row.text, row.text_b])
    return texts


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22:209), 0 to 1."""
    share, spread = right / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _report(
    config: QualityConfig, judged: Sequence[_Judged], results: Results, plan: Plan, hardware: Hardware
) -> Report:
    first, *others = judged
    n_rows = first.result.evaluation.n_rows
    accuracies = [_accuracy(one) for one in judged]
    return Report(
        kind="quality",
        title=f"{first.result.evaluation.bundle}: quality on {n_rows} rows of {config.data.name}",
        made=now(),
        command=config.command,
        machine=this_machine(),
        bundles={one.name: one.digest for one in judged},
        verdict=[_verdict(first, other, results) for other in others] or [_alone(first, accuracies[0])],
        how=[
            _HOW_JUDGED,
            _how_timed(n_rows),
            *how_measured(plan, hardware),
        ],
        tables=[_table(judged, accuracies, results), footprint_table(results)],
        plots=_plots(judged, accuracies, results),
        figures=[*accuracies, *speed_figures(results), *footprint_figures(results)],
        left_out=results.left_out,
    )


def _how_timed(n_rows: int) -> str:
    few = [str(batch) for batch in BATCHES if batch > n_rows]
    again = f"; in a call of {' or '.join(few)}, more than the file has, some come again" if few else ""
    return (
        f"Times: calls of {' and of '.join(map(str, BATCHES))} rows, the same for all in a turn. They are drawn from "
        f"the file for each turn: a row may come again in another turn, but not in one call{again}."
    )


def _accuracy(one: _Judged) -> Figure:
    n = one.result.evaluation.n_rows
    right = round(one.result.evaluation.accuracy * n)
    low, high = interval(right, n)
    return Figure(
        name=f"accuracy/{one.name}", value=100 * right / n, low=100 * low, high=100 * high, unit="%", better="higher"
    )


def _table(judged: Sequence[_Judged], accuracies: Sequence[Figure], results: Results) -> Table:
    rows = []
    for one, accuracy in zip(judged, accuracies, strict=True):
        evaluation, both = one.result.evaluation, contrast(judged[0].result, one.result)
        shown = f"{accuracy.value:.1f} % ({accuracy.low:.1f} to {accuracy.high:.1f})"
        apart = "" if one is judged[0] else f"{both.only_first_right}, {both.only_second_right}"
        cells = [
            one.name,
            one.method,
            shown,
            f"{evaluation.macro_f1:.3f}",
            f"{evaluation.calibration_error:.3f}",
            apart,
        ]
        measured = results.systems.get(one.name)
        if measured is not None:
            cells.append(f"{measured.file_bytes / MB:.1f}")
            for load in measured.seconds:
                ratio = "" if one is judged[0] else f", {said_ratio(results.ratios(one.name, load))}"
                cells.append(f"{1000 * results.median_s(one.name, load):.1f}{ratio}")
        rows.append(cells + [""] * (7 + len(BATCHES) - len(cells)))
    columns = [
        "bundle",
        "method",
        "accuracy",
        "macro-F1",
        "calibration error",
        "only first, only this right",
        "files, MB",
    ]
    return Table(
        title="Accuracy, size and speed",
        columns=[*columns, *(f"ms, {_load(batch)}" for batch in BATCHES)],
        rows=rows,
        note="Times are medians; then how many times as long as the first bundle in the same turn.",
    )


def _verdict(first: _Judged, other: _Judged, results: Results) -> str:
    both = contrast(first.result, other.result)
    points = 100 * (other.result.evaluation.accuracy - first.result.evaluation.accuracy)
    said = f"{other.name} is {abs(points):.1f} points {'more' if points >= 0 else 'less'} accurate than {first.name}"
    said += f" ({both.only_second_right} rows gained, {both.only_first_right} lost)"
    if other.name not in results.systems:
        return f"{said}."
    size = results.systems[other.name].file_bytes / results.systems[first.name].file_bytes
    times = ", ".join(
        f"{said_ratio(results.ratios(other.name, load))} for {load}" for load in results.systems[first.name].seconds
    )
    return f"{said}; its files are {size:.2f} times as large, and it takes {times} times as long."


def _alone(one: _Judged, accuracy: Figure) -> str:
    return f"{one.name} is right on {accuracy.value:.1f} % ({accuracy.low:.1f} to {accuracy.high:.1f}) of the rows."


def _plots(judged: Sequence[_Judged], accuracies: Sequence[Figure], results: Results) -> list[Plot]:
    there = [(one, a) for one, a in zip(judged, accuracies, strict=True) if one.name in results.systems]

    def plot(title: str, x_label: str, x_of: Callable[[str], float]) -> Plot:
        series = [
            Series(name=o.name, x=[x_of(o.name)], y=[a.value], labels=[o.precision], low=[a.low], high=[a.high])
            for o, a in there
        ]
        return Plot(title=title, x_label=x_label, y_label="accuracy, %", series=series)

    load = _load(BATCHES[0])
    return [
        plot("accuracy against size", "files, MB", lambda name: results.systems[name].file_bytes / MB),
        plot("accuracy against time", "ms, 1 row", lambda name: 1000 * results.median_s(name, load)),
    ]
