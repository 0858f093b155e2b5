"""What people see while long work runs and when it is done: bars on a terminal, plain lines elsewhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from transformers.utils import logging as transformers_logging

from ptexport.runtime.manifest import Comparison, Manifest
from ptexport.toolkit.run import Run


class _Report:
    """Shows steps, epochs, stages and rows on standard error."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._task: TaskID | None = None

    def step(self, done: int, total: int, loss: float) -> None:
        self._advance(f"training, loss {loss:.3f}", done, total)

    def epoch(self, number: int, dev_accuracy: float) -> None:
        self._console.print(f"epoch {number}: dev accuracy {dev_accuracy:.1%}")

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        self._console.print(f"{name} …")

    def rows(self, done: int, total: int) -> None:
        self._advance("rows compared", done, total)

    def _advance(self, what: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bars.add_task(what, total=total)
        self._bars.update(self._task, description=what, completed=done, total=total)


@contextmanager
def reporting() -> Iterator[_Report]:
    """Show progress while the block runs, and keep the libraries' own chatter away from it."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _Report(console, bars)


def print_metrics(run: Run, out: Path) -> None:
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
