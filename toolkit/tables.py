"""What people see when a command is done: tables on standard output."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.runtime.manifest import Comparison, Manifest
from ptexport.toolkit.evaluate import Contrast, Evaluation

if TYPE_CHECKING:
    from ptexport.toolkit.run import Run  # it needs the extra `train`


def print_metrics(run: "Run", out: Path) -> None:
    """Print what a training came to."""
    metrics = run.metrics
    table = Table(title=f"accuracy on {metrics.n_test} test rows", title_justify="left")
    table.add_column("template")
    table.add_column("prompt")
    table.add_column("accuracy", justify="right")
    for template, accuracy in sorted(metrics.manual_accuracy.items(), key=lambda item: item[1]):
        table.add_row(escape(template), "hand-written", f"{accuracy:.1%}")
    table.add_row(escape(run.config.template), "learned", f"{metrics.test_accuracy:.1%}", style="bold")
    console = Console()
    console.print(table)
    console.print(
        f"{out}: {metrics.trainable_parameters:,} parameters trained on {metrics.n_train} rows in "
        f"{metrics.train_seconds:.0f} s, dev accuracy {metrics.dev_accuracy:.1%}",
        markup=False,
        highlight=False,
    )


def print_parity(manifest: Manifest, out: Path) -> None:
    """Print how a bundle compares with the model it came from."""
    parity = manifest.parity
    table = Table(title=f"{parity.rows} rows against untouched Transformers", title_justify="left")
    for header in ("batches", "largest |Δlogit|", "mean |Δlogit|", "labels that differ"):
        table.add_column(header, justify="left" if header == "batches" else "right")
    for name, result in (
        ("each row alone", parity.alone),
        ("mixed, padded right", parity.padded_right),
        ("mixed, padded left", parity.padded_left),
    ):
        table.add_row(name, *_figures(result))
    size = sum(entry.size_bytes for entry in manifest.files.values())
    console = Console()
    console.print(table)
    console.print(
        f"{out}: {size / 1e6:.0f} MB, opset {manifest.graph.opset}, "
        f"{manifest.graph.folded_tokens} leading tokens folded into constants",
        markup=False,
        highlight=False,
    )


def _figures(result: Comparison) -> tuple[str, str, str]:
    return f"{result.max_abs_diff:.1e}", f"{result.mean_abs_diff:.1e}", str(len(result.flips))


def print_evaluations(evaluations: list[Evaluation], contrast: Contrast | None) -> None:
    """Print one bundle's figures, or two side by side."""
    table = Table(title=f"{evaluations[0].n_rows} rows", title_justify="left")
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(escape(evaluation.bundle), justify="right")
    for name, figures in (
        ("accuracy", [f"{e.accuracy:.1%}" for e in evaluations]),
        ("macro-F1", [f"{e.macro_f1:.3f}" for e in evaluations]),
        ("expected calibration error", [f"{e.calibration_error:.3f}" for e in evaluations]),
        ("one row alone, median", [f"{e.latency.p50_ms:.1f} ms" for e in evaluations]),
        ("one row alone, 99 of 100 within", [f"{e.latency.p99_ms:.1f} ms" for e in evaluations]),
        ("all rows in batches", [f"{e.latency.rows_per_s:.0f} rows/s" for e in evaluations]),
    ):
        table.add_row(name, *figures)
    console = Console()
    console.print(table)
    for evaluation in evaluations:
        console.print(_confusion(evaluation))
        if evaluation.worst:
            console.print(_worst(evaluation))
    if contrast is not None:
        console.print(
            f"the two agree on {contrast.agreement:.1%} of the rows; where they do not, the first is right on "
            f"{contrast.only_first_right}, the second on {contrast.only_second_right} "
            f"(rows {', '.join(map(str, contrast.differing[:10])) or 'none'}{' …' * (len(contrast.differing) > 10)})",
            highlight=False,
        )


def _confusion(evaluation: Evaluation) -> Table:
    table = Table(title=f"{escape(evaluation.bundle)}: label (down) answered as (across)", title_justify="left")
    for header in ("", *evaluation.labels, "F1"):
        table.add_column(escape(header), justify="left" if header == "" else "right")
    for label, counts, f1 in zip(evaluation.labels, evaluation.confusion, evaluation.f1, strict=True):
        table.add_row(escape(label), *map(str, counts), f"{f1:.3f}")
    return table


def _worst(evaluation: Evaluation) -> Table:
    table = Table(title=f"{escape(evaluation.bundle)}: surest mistakes", title_justify="left")
    for header in ("row", "label", "answer", "probability"):
        table.add_column(header)
    for mistake in evaluation.worst:
        figures = str(mistake.row), escape(mistake.label), escape(mistake.answer), f"{mistake.probability:.3f}"
        table.add_row(*figures)
    return table
