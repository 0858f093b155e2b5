"""Bundles of one task and labelled rows -> accuracy, and latency on the same rows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.bench.interleaved import (
    QUICK,
    Batch,
    Contender,
    RoundPlan,
    Workloads,
    bundle_name,
    measure,
)
from ptexport.toolkit.bench.quality.report import Accuracy, quality_report
from ptexport.toolkit.bench.report import BenchReport
from ptexport.toolkit.bench.synthetic_texts import only_task
from ptexport.toolkit.bench.workers import Hardware, bundle_worker
from ptexport.toolkit.data.sources import source_name
from ptexport.toolkit.data.splits import read_test_rows
from ptexport.toolkit.evaluation.evaluate import check_comparable, evaluate
from ptexport.toolkit.progress import Progress

FULL = RoundPlan(rounds=9, seconds=60, starts=1)
BATCHES = (1, 32)
N_COMPARED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """The settings of a quality bench.

    Attributes:
        bundles: folders of bundles; the others are compared with the first.
        data: labelled rows that are not in any training data, as in `read_test_rows`;
        columns: which columns are read.
        threads: number of CPUs that each bundle may use; None: all that this process may use.
        quick: whether to measure fewer rounds.
        command: command line, for the report.
    """

    bundles: Sequence[Path]
    data: str
    columns: Columns
    threads: int | None
    quick: bool
    command: str


def bench_quality(config: QualityConfig, progress: Progress) -> BenchReport:
    """Measure the accuracy of bundles, then their latency.

    Args:
        config: settings.
        progress: receives the number of rows per bundle, then the number of rounds.

    Raises:
        DataError: the bundles have different labels or fields, or a row does not fit them (the message has its line).
        BundleError: a bundle does not match its manifest, or has several tasks.
        BenchError: two bundles have the same name.
    """
    threads = min(config.threads or available_cpus(), available_cpus())
    first = only_task(Bundle.open(config.bundles[0]))
    rows = list(
        read_test_rows(
            config.data,
            config.columns,
            progress.choice,
            fields=first.fields,
            by_label=first.labels is not None,
            seed=first.seed,
        )
    )
    accuracies = _evaluate(config.bundles, rows, threads, progress)
    hardware = Hardware(threads=threads)
    contenders = [
        Contender(name=one.name, start=bundle_worker(one.name, str(path), hardware), tolerance=None)
        for one, path in zip(accuracies, config.bundles, strict=True)
    ]
    batches = {workload_name(batch): partial(draw_batch, rows, batch) for batch in BATCHES}
    workloads = Workloads(batches=batches, compared=[draw_batch(rows, 1, -1), draw_batch(rows, N_COMPARED, -2)])
    plan = QUICK if config.quick else FULL
    results = measure(contenders, workloads, plan, hardware, progress)
    return quality_report(
        accuracies,
        results,
        plan,
        data=source_name(config.data),
        batches=BATCHES,
        command=config.command,
        hardware=hardware,
    )


def _evaluate(bundles: Sequence[Path], rows: Sequence[Row], threads: int, progress: Progress) -> list[Accuracy]:
    accuracies: list[Accuracy] = []
    first: Engine | None = None
    for path in bundles:
        task = only_task(Bundle.open(path))
        with Engine.open(path, provider="cpu", threads=threads) as engine:
            check_comparable([(first or engine).task(), engine.task()])
            result = evaluate(engine, rows, lambda done: progress.rows(done, len(rows)))
            precision = engine.manifest.graph.precision
            accuracies.append(
                Accuracy(
                    name=bundle_name(path, precision),
                    method=task.method,
                    precision=precision,
                    digest=engine.manifest.digest,
                    result=result,
                )
            )
            first = first or engine  # its manifest stays readable when it is closed
    return accuracies


def workload_name(batch: int) -> str:
    """Name the workload of calls with `batch` rows."""
    return f"{batch} row{'s' if batch > 1 else ''}"


def draw_batch(rows: Sequence[Row], batch: int, call: int) -> Batch:
    """Draw the texts of a call, without repetition if there are enough rows."""
    draw = random.Random(f"{batch} {call}")
    chosen = draw.sample(rows, batch) if len(rows) >= batch else draw.choices(rows, k=batch)
    texts: list[str | list[str]] = []
    for row in chosen:
        if row.choices is not None:
            texts += [[row.text, choice] for choice in row.choices]
        else:
            texts.append(row.text if row.text_b is None else [row.text, row.text_b])
    return texts
