"""Accuracies and latencies of bundles -> the report of a quality bench."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ptexport.toolkit.bench.interleaved import RoundPlan, SpeedResults, describe_method
from ptexport.toolkit.bench.ratio import HOW
from ptexport.toolkit.bench.report import BenchReport, Figure, Plot, Table, now, this_machine
from ptexport.toolkit.bench.speed.footprint import MB, footprint_figures, footprint_tables, megabytes, memory_bars
from ptexport.toolkit.bench.speed.latency import compare_latency, latency_bars, latency_table, spoken
from ptexport.toolkit.bench.speed.report import speed_figures
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.evaluation.evaluate import Result, contrast
from ptexport.toolkit.evaluation.metrics import wilson_interval
from ptexport.toolkit.evaluation.wording import compare_accuracy

_HOW_ACCURATE = (
    "Accuracy: each bundle on all rows, with Wilson's 95 % interval. Two bundles differ in accuracy if the 95 % "
    "interval of their difference on the same rows (Bonett and Price 2012) excludes 0."
)
_COLUMNS = ("bundle", "method", "accuracy (%)", "macro-F1", "calibration error", "rows lost", "rows gained")
_NOTE = (
    "Accuracy: with its 95 % interval. Rows lost, gained: rows that only the first bundle, or only this one, predicts "
    "correctly."
)


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
    first = accuracies[0]
    evaluation = first.result.evaluation
    return BenchReport(
        kind="quality",
        title=f"{evaluation.bundle}: quality on {evaluation.n_rows} rows of {data}",
        made=now(),
        command=command,
        machine=this_machine(),
        bundles={one.name: one.digest for one in accuracies},
        verdict=_verdict(accuracies, results),
        how=[
            _HOW_ACCURATE,
            HOW.format(first=first.name),
            describe_calls(batches, evaluation.n_rows),
            *describe_method(plan, hardware),
        ],
        tables=[_accuracy_table(accuracies), *_latency_tables(results, batches), *footprint_tables(results)],
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


def _accuracy_table(accuracies: Sequence[Accuracy]) -> Table:
    first, rows = accuracies[0], []
    for one in accuracies:
        evaluation, accuracy = one.result.evaluation, one.figure
        both = contrast(first.result, one.result)
        rows.append(
            [
                one.name,
                one.method,
                f"{accuracy.value:.1f} ({accuracy.low:.1f} to {accuracy.high:.1f})",
                f"{evaluation.macro_f1:.3f}",
                f"{evaluation.calibration_error:.3f}",
                *(("", "") if one is first else (str(both.only_first_right), str(both.only_second_right))),
            ]
        )
    return Table(title="Accuracy", columns=list(_COLUMNS), rows=rows, note=_NOTE, highlight=0)


def _latency_tables(results: SpeedResults, batches: Sequence[int]) -> list[Table]:
    workloads = results.systems[results.first].seconds
    tables = [
        latency_table(
            results, workload, batch, title=f"Latency and throughput, {workload} per call", than=results.first
        )
        for workload, batch in zip(workloads, batches, strict=True)
    ]
    return [*tables[:-1], msgspec.structs.replace(tables[-1], note="Median latency of a call, from texts to logits.")]


def _verdict(accuracies: Sequence[Accuracy], results: SpeedResults) -> list[str]:
    """State how each bundle compares with the first."""
    first, *others = accuracies
    ours, sentences = spoken(first.name), []
    for one in others:
        both = contrast(first.result, one.result)
        evaluations, theirs = (first.result.evaluation, one.result.evaluation), spoken(one.name)
        sentences.append(compare_accuracy(*evaluations, both, ours, theirs))
        if one.name in results.systems:
            workloads = {workload: f"{workload} per call" for workload in results.systems[first.name].seconds}
            sentences.append(compare_latency(results, one.name, workloads, subject=theirs, than=ours))
            sizes = [megabytes(results.systems[each.name].file_bytes) for each in (one, first)]
            sentences.append(f"{theirs} has {sizes[0]} MB of files, {ours} {sizes[1]} MB.")
    if sentences:
        return sentences
    accuracy = first.figure
    interval = f"95 % interval {accuracy.low:.1f} to {accuracy.high:.1f} %"
    rows = first.result.evaluation.n_rows
    return [f"{ours} has an accuracy of {accuracy.value:.1f} % ({interval}) on {rows} rows."]


def _plots(accuracies: Sequence[Accuracy], results: SpeedResults) -> list[Plot]:
    figures = sorted((one.figure for one in accuracies), key=lambda figure: -figure.value)
    names = [figure.name.removeprefix("accuracy/") for figure in figures]
    first = accuracies[0].name
    sizes = {name: results.systems[name].file_bytes / MB for name in results.systems}
    smallest = sorted(sizes, key=lambda name: sizes[name])
    return [
        Plot.bars(
            "Accuracy",
            "accuracy (%); line: 95 % interval",
            [f"{name}: {figure.value:.1f} %" for name, figure in zip(names, figures, strict=True)],
            [figure.value for figure in figures],
            [(figure.low, figure.high) for figure in figures],
            highlight=names.index(first),
        ),
        *(latency_bars(results, load, title=f"Latency of {load} per call") for load in results.systems[first].seconds),
        Plot.bars(
            "Size of the files",
            "files (MB)",
            [f"{name}: {sizes[name]:.1f} MB" for name in smallest],
            [sizes[name] for name in smallest],
            highlight=smallest.index(first),
        ),
        memory_bars(results),
    ]
