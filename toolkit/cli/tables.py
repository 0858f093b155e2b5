"""Results of training, import, export and evaluation -> tables on standard output."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.measured import Candidate, Comparison, Parity
from ptexport.toolkit.evaluation.metrics import ABSTENTION_NOTE, Contrast, Evaluation, headings, summary

if TYPE_CHECKING:
    from ptexport.toolkit.run.run import Run  # it needs the extra `train`
    from ptexport.toolkit.training.sweep import Outcome


def table_of(*headers: str, title: str | None = None) -> Table:
    """Make a table with names in the first column and right-aligned figures in the others."""
    table = Table(title=None if title is None else escape(title), title_justify="left")
    for number, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if number else "left")
    return table


def print_metrics(run: "Run", out: Path) -> None:
    """Print the metrics of a trained run."""
    metrics = run.metrics
    assert metrics is not None, "it was trained"
    table = Table(title=f"accuracy on {metrics.n_test} test rows", title_justify="left")
    table.add_column("template")
    table.add_column("method")
    table.add_column("accuracy", justify="right")
    for template, accuracy in sorted(metrics.manual_accuracy.items(), key=lambda item: item[1]):
        table.add_row(escape(template), "hand-written", f"{accuracy:.1%}")
    table.add_row(escape(run.config.template), metrics.method, f"{metrics.test_accuracy:.1%}", style="bold")
    console = Console()
    console.print(table)
    console.print(
        f"{out}: {metrics.trainable_parameters:,} parameters trained on {metrics.n_train} rows in "
        f"{metrics.train_seconds:.0f} s, dev accuracy {metrics.dev_accuracy:.1%}",
        markup=False,
        highlight=False,
    )
    if metrics.found_words is not None:
        console.print(f"found the words {', '.join(metrics.found_words)}", markup=False, highlight=False)
        if metrics.manual_accuracy and metrics.test_accuracy <= statistics.median(metrics.manual_accuracy.values()):
            console.print(
                "accuracy is not better than with the median hand-written template", markup=False, highlight=False
            )


def print_import(run: "Run", out: Path) -> None:
    """Print how an imported run compares with its source."""
    imported = run.config.imported
    assert imported is not None, "it was imported"
    labels = "a vocabulary" if run.config.open_vocabulary else ", ".join(run.config.labels)
    what, original = "classifier", "Transformers"
    if imported.peft_type is not None:
        what, original = f"{imported.peft_type} for {imported.task_type} on", "PEFT"
    Console().print(
        f"{out}: {what} {run.config.model}, labels {labels}; largest difference of a logit from {original} over "
        f"{imported.rows} rows {imported.max_abs_diff:.1e}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def print_outcomes(outcomes: list["Outcome"], out: Path) -> None:
    """Print the runs of a sweep, the best first."""
    table = table_of("run", "dev accuracy", "test accuracy", "epochs", "seconds")
    for outcome in outcomes:
        if outcome.failed is None:
            figures = f"{outcome.dev_accuracy:.1%}", f"{outcome.test_accuracy:.1%}", str(outcome.epochs)
            table.add_row(escape(outcome.name), *figures, f"{outcome.train_seconds:.0f}")
        else:
            table.add_row(escape(outcome.name), "failed", "-", "-", "-")
    console = Console()
    console.print(table)
    for outcome in outcomes:
        if outcome.failed is not None:
            console.print(f"{outcome.name}: {outcome.failed}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}/best is {outcomes[0].name}, chosen by dev accuracy", markup=False, highlight=False)


def print_export(manifest: Manifest, out: Path) -> None:
    """Print an exported bundle, and its comparison with Transformers."""
    console = Console()
    for task in manifest.tasks:
        title = "" if len(manifest.tasks) == 1 else f"{task.name}: "
        if task.parity is None:
            console.print("not run: ONNX Runtime's CPU provider cannot run bf16", markup=False, highlight=False)
        else:
            console.print(_parity(task.parity, task.fan_out, title))
    graph, lowered = manifest.graph, manifest.graph.lowered
    if lowered is not None and lowered.accuracy is not None:
        accuracy = f"accuracy {lowered.accuracy:.1%} on {lowered.rows} rows, {lowered.accuracy_fp32:.1%} in fp32"
        kept = f"; in fp32: {', '.join(lowered.kept_fp32)}" if lowered.kept_fp32 else ""
        console.print(f"{graph.precision}: {accuracy}{kept}", markup=False, highlight=False, soft_wrap=True)
    if graph.autotuned:
        console.print(_timings(graph.autotuned))
    size = sum(entry.size_bytes for entry in manifest.files.values())
    console.print(
        f"{out}: {size / 1e6:.0f} MB, for {graph.target}, opset {graph.opset}, {_contents(manifest)}",
        markup=False,
        highlight=False,
    )


def _contents(manifest: Manifest) -> str:
    if len(manifest.tasks) == 1:
        return f"{manifest.task.folded_tokens} leading tokens folded into constants"
    passes = "one forward pass per text" if manifest.fan_out else "one forward pass per text and task"
    return f"{len(manifest.tasks)} tasks, {passes}"


def _parity(parity: Parity, fan_out: Comparison | None, title: str) -> Table:
    headers = ("batches", "largest |Δlogit|", "mean |Δlogit|", "labels that differ")
    table = table_of(*headers, title=f"{title}{parity.rows} rows against untouched Transformers")
    for name, result in (
        ("each row alone", parity.alone),
        ("mixed, padded right", parity.padded_right),
        ("mixed, padded left", parity.padded_left),
        ("all tasks in one row", fan_out),
    ):
        if result is not None:
            figures = f"{result.max_abs_diff:.1e}", f"{result.mean_abs_diff:.1e}", str(len(result.flips))
            table.add_row(name, *figures)
    for name, largest in (
        ("texts of any length", parity.all_lengths),
        ("the graph with itself, among 64 others", parity.among_neighbours),
    ):
        if largest is not None:
            table.add_row(name, f"{largest:.1e}", "", "")
    return table


def _timings(candidates: list[Candidate]) -> Table:
    sizes = [f"{timing.batch} x {timing.tokens}" for timing in candidates[0].timings]
    table = table_of("graph", *sizes, "labels", title="median ms of rows x tokens on this machine, timed alternately")
    for candidate in candidates:
        figures = [f"{timing.median_ms:.1f}" for timing in candidate.timings]
        table.add_row(f"opset {candidate.opset}", *figures, "the same" if candidate.same_labels else "differ")
    return table


def print_evaluations(evaluations: list[Evaluation], contrast: Contrast | None) -> None:
    """Print the figures of one bundle, or of two side by side."""
    names = headings(evaluations)
    table = table_of("", *names, title=f"{evaluations[0].n_rows} rows")
    figures = [summary(evaluation) for evaluation in evaluations]
    for name in figures[0]:
        table.add_row(name, *(figure[name] for figure in figures))
    console = Console()
    console.print(table)
    for name, evaluation in zip(names, evaluations, strict=True):
        console.print(_confusion(name, evaluation))
        if evaluation.worst:
            console.print(_worst(name, evaluation))
    if any(evaluation.coverage < 1 for evaluation in evaluations):
        console.print(ABSTENTION_NOTE, markup=False, highlight=False)
    if contrast is not None:
        console.print(
            f"both predict the same on {contrast.agreement:.1%} of the rows; of the others, the first is right on "
            f"{contrast.only_first_right} and the second on {contrast.only_second_right} "
            f"(rows {', '.join(map(str, contrast.differing[:10])) or 'none'}{' …' * (len(contrast.differing) > 10)})",
            markup=False,
            highlight=False,
        )


def _confusion(name: str, evaluation: Evaluation) -> Table:
    table = table_of("", *evaluation.labels, "F1", title=f"{name}: rows by label (down) and predicted label (across)")
    for label, counts, f1 in zip(evaluation.labels, evaluation.confusion, evaluation.f1, strict=True):
        table.add_row(escape(label), *map(str, counts), f"{f1:.3f}")
    return table


def _worst(name: str, evaluation: Evaluation) -> Table:
    table = table_of(
        "row", "label", "predicted", "probability", title=f"{name}: most confident mistakes, by row number from 1"
    )
    for mistake in evaluation.worst:
        figures = str(mistake.row), escape(mistake.label), escape(mistake.answer), f"{mistake.probability:.3f}"
        table.add_row(*figures)
    return table
