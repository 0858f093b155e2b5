"""Accuracies and latencies of bundles -> the report of a quality bench."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ptexport.toolkit.bench.interleaved import RoundPlan, SpeedResults, describe_method
from ptexport.toolkit.bench.report import BenchReport, Figure, Plot, Series, Table, now, this_machine
from ptexport.toolkit.bench.speed.report import (
    MB,
    footprint_figures,
    footprint_table,
    in_words,
    speed_figures,
    with_interval,
)
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.evaluation.evaluate import Result, contrast

_Z = 1.96  # of a 95 % interval
_ACCURACY = (
    "Accuracy: each bundle on all rows, with Wilson's 95 % confidence interval. The numbers of rows that only one of "
    "two bundles predicts correctly are the more sensitive comparison."
)
_COLUMNS = ("bundle", "method", "accuracy", "macro-F1", "calibration error", "rows lost, gained", "files, MB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A bundle's evaluation on the rows."""

    name: str
    method: str
    precision: str
    digest: str
    result: Result

    @property
    def figure(self) -> Figure:
        """Accuracy in percent, with Wilson's interval."""
        n = self.result.evaluation.n_rows
        right = round(self.result.evaluation.accuracy * n)
        low, high = wilson_interval(right, n)
        return Figure(
            name=f"accuracy/{self.name}",
            value=100 * right / n,
            low=100 * low,
            high=100 * high,
            unit="%",
            better="higher",
        )


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share (Wilson 1927, JASA 22:209), 0 to 1."""
    share, spread = right / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def quality_report(
    accuracies: Sequence[Accuracy],
    results: SpeedResults,
    plan: RoundPlan,
    *,
    data: str,
    batches: Sequence[int],
    command: str,
    hardware: Hardware,
) -> BenchReport:
    """Make the report of a quality bench.

    Args:
        accuracies: evaluations of the bundles; the others are compared with the first.
        results: latencies, by the same names; the workloads are in the order of `batches`.
        plan: how much was measured.
        data: name of the file of rows.
        batches: rows per call.
        command: command line that made the report.
        hardware: hardware that each bundle could use.
    """
    first, *others = accuracies
    evaluation = first.result.evaluation
    return BenchReport(
        kind="quality",
        title=f"{evaluation.bundle}: quality on {evaluation.n_rows} rows of {data}",
        made=now(),
        command=command,
        machine=this_machine(),
        bundles={one.name: one.digest for one in accuracies},
        verdict=[_compare(first, other, results) for other in others] or [_single(first)],
        how=[_ACCURACY, describe_calls(batches, evaluation.n_rows), *describe_method(plan, hardware)],
        tables=[_table(accuracies, results), footprint_table(results)],
        plots=_plots(accuracies, results),
        figures=[*(one.figure for one in accuracies), *speed_figures(results), *footprint_figures(results)],
        left_out=results.left_out,
    )


def describe_calls(batches: Sequence[int], n_rows: int) -> str:
    """Describe which rows the calls have."""
    too_large = [str(batch) for batch in batches if batch > n_rows]
    repeated = f"; calls of {' or '.join(too_large)} rows, more than the file has, repeat some" if too_large else ""
    return (
        f"Latency: calls of {' and '.join(map(str, batches))} rows, the same for all bundles in a round. Each call "
        f"draws its rows from the file: a row may occur in several calls, but once per call{repeated}."
    )


def _table(accuracies: Sequence[Accuracy], results: SpeedResults) -> Table:
    first = accuracies[0]
    workloads = list(results.systems[results.first].seconds)
    rows = []
    for one in accuracies:
        evaluation, accuracy = one.result.evaluation, one.figure
        both = contrast(first.result, one.result)
        cells = [
            one.name,
            one.method,
            f"{accuracy.value:.1f} % ({accuracy.low:.1f} to {accuracy.high:.1f})",
            f"{evaluation.macro_f1:.3f}",
            f"{evaluation.calibration_error:.3f}",
            "" if one is first else f"{both.only_first_right}, {both.only_second_right}",
        ]
        system = results.systems.get(one.name)
        if system is not None:
            cells.append(f"{system.file_bytes / MB:.1f}")
            for workload in workloads:
                ratio = "" if one is first else f", {with_interval(results.slowdowns(one.name, workload))}"
                cells.append(f"{1000 * results.median_s(one.name, workload):.1f}{ratio}")
        rows.append(cells + [""] * (len(_COLUMNS) + len(workloads) - len(cells)))
    return Table(
        title="Accuracy, size and latency",
        columns=[*_COLUMNS, *(f"latency, {workload}, ms" for workload in workloads)],
        rows=rows,
        note="Rows lost, gained: rows that only the first bundle, or only this one, predicts correctly. Latency: "
        "median, then the ratio to the first bundle in the same round with its 95 % confidence interval.",
    )


def _compare(first: Accuracy, other: Accuracy, results: SpeedResults) -> str:
    both = contrast(first.result, other.result)
    points = 100 * (other.result.evaluation.accuracy - first.result.evaluation.accuracy)
    sentence = (
        f"{other.name} is {abs(points):.1f} points {'more' if points >= 0 else 'less'} accurate than {first.name}"
    )
    sentence += f" (rows gained: {both.only_second_right}, lost: {both.only_first_right})"
    if other.name not in results.systems:
        return f"{sentence}."
    ours, theirs = results.systems[first.name], results.systems[other.name]
    latencies = " and ".join(f"{in_words(results.slowdowns(other.name, load))} for {load}" for load in ours.seconds)
    return f"{sentence}. Its files have {theirs.file_bytes / ours.file_bytes:.0%} of the size. It is {latencies}."


def _single(one: Accuracy) -> str:
    accuracy = one.figure
    return f"{one.name} has an accuracy of {accuracy.value:.1f} % (95 % CI {accuracy.low:.1f} to {accuracy.high:.1f})."


def _plots(accuracies: Sequence[Accuracy], results: SpeedResults) -> list[Plot]:
    measured = [(one, one.figure) for one in accuracies if one.name in results.systems]
    workload = next(iter(results.systems[results.first].seconds))

    def plot(title: str, x_label: str, x_of: Callable[[str], float]) -> Plot:
        series = [
            Series(name=o.name, x=[x_of(o.name)], y=[a.value], labels=[o.precision], low=[a.low], high=[a.high])
            for o, a in measured
        ]
        return Plot(title=title, x_label=x_label, y_label="accuracy, %", series=series)

    return [
        plot("accuracy against size", "files, MB", lambda name: results.systems[name].file_bytes / MB),
        plot(
            "accuracy against latency",
            f"latency, {workload}, ms",
            lambda name: 1000 * results.median_s(name, workload),
        ),
    ]
