"""Progress of long work -> progress bars on a terminal, or JSON lines."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ptexport.runtime.errors import OutputError, PtexportError

LINE_EVERY_S = 1.0
"""Minimum time between two lines for steps or rows; the last step and row always get a line."""


class ProgressBars:
    """Shows steps, epochs, stages, rows and notes; see `Progress`.

    Args:
        bars: progress bars, on a terminal.
        streams: receive each event as a line of JSON.
    """

    def __init__(self, bars: Progress, streams: list[TextIO]) -> None:
        self._bars = bars
        self._streams = streams
        self._task: tuple[str, TaskID] | None = None
        self._written = 0.0
        self._choices: set[str] = set()
        self._rows: tuple[int, int | None] = 0, None

    def step(self, done: int, total: int, loss: float) -> None:
        """Show an optimizer step."""
        self._advance("training", f"training, loss {loss:.3f}", done, total)
        self._line_at_times(done == total, event="step", done=done, total=total, loss=loss)

    def epoch(self, number: int, dev_accuracy: float) -> None:
        """Show an evaluation on the dev rows."""
        self._print(f"epoch {number}: dev accuracy {dev_accuracy:.1%}")
        self._line(event="epoch", epoch=number, dev_accuracy=dev_accuracy)

    def note(self, message: str) -> None:
        """Show an intermediate result."""
        self._print(message)
        self._line(event="note", message=message)

    def choice(self, message: str) -> None:
        """Show what was chosen for the user, even if nothing else is shown."""
        if message not in self._choices:  # the trainings of a sweep share most choices
            self._choices.add(message)
            self._print(message, anyway=True)
            self._line(event="choice", message=message)

    def warning(self, message: str) -> None:
        """Show a warning, even if nothing else is shown."""
        self._print(f"warning: {message}", anyway=True)
        self._line(event="warning", message=message)

    def stage(self, name: str) -> None:
        """Show the start of a stage of unknown duration."""
        self._advance(name, name, 0, None)
        self._line(event="stage", name=name)

    def rows(self, done: int, total: int | None) -> None:
        """Show processed rows; `total` may be None (unknown) or an estimate."""
        self._rows = done, total
        self._advance("rows", "rows", done, total)
        self._line_at_times(done == total, event="rows", done=done, total=total)

    def all_rows(self) -> None:
        """Mark the last number of processed rows as the total."""
        done, total = self._rows
        if done != total:
            self.rows(done, done)

    def end(self, event: str, **more: str) -> None:
        """Write the end of the work as a line."""
        self._line(event=event, **more)

    def _advance(self, name: str, description: str, done: int, total: int | None) -> None:
        if self._task is None or self._task[0] != name:
            if self._task is not None:
                self._bars.update(self._task[1], total=1, completed=1)
            self._task = name, self._bars.add_task(description, total=total)
        self._bars.update(self._task[1], description=description, completed=done, total=total)

    def _print(self, message: str, *, anyway: bool = False) -> None:
        if anyway or not self._bars.disable:
            self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _line_at_times(self, last: bool, **event: object) -> None:
        if last or time.monotonic() - self._written >= LINE_EVERY_S:
            self._written = time.monotonic()
            self._line(**event)

    def _line(self, **event: object) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False) + "\n"
        for stream in list(self._streams):
            try:
                stream.write(line)
                stream.flush()
            except OSError as e:  # a full disk or a closed pipe must not stop the work
                self._streams.remove(stream)
                self.warning(f"{stream.name}: takes no more lines ({e.strerror or e})")


@contextmanager
def reporting(*, as_json: bool, log_file: Path | None, quiet: bool = False) -> Iterator[ProgressBars]:
    """Show progress on standard error while the block runs.

    Args:
        as_json: write JSON lines instead of bars. Without it, and without a terminal, only warnings are shown.
        log_file: also append the JSON lines to this file.
        quiet: show and write nothing, as on ranks above 0.

    Raises:
        OutputError: the log file cannot be written.
    """
    with ExitStack() as stack:
        if quiet:
            yield ProgressBars(Progress(console=Console(quiet=True), disable=True), [])
            return
        streams: list[TextIO] = [sys.stderr] if as_json else []
        if log_file is not None:
            try:
                streams.append(log_file.open("a", encoding="utf-8"))
                stack.callback(_close, streams[-1])
            except OSError as e:
                raise OutputError(f"{log_file}: cannot be written ({e.strerror}); choose another log file") from e
        console = Console(stderr=True, quiet=as_json)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # Not console.is_terminal, which FORCE_COLOR sets too: notebooks do, and show no moving bars.
        bars = stack.enter_context(Progress(*columns, console=console, disable=as_json or not sys.stderr.isatty()))
        progress = ProgressBars(bars, streams)
        try:
            yield progress
        except PtexportError as e:
            progress.end("error", message=str(e))
            raise
        progress.end("done")


def _close(stream: TextIO) -> None:
    with suppress(OSError):  # lines that could not be written; a warning was shown
        stream.close()


def bars_on_terminals() -> None:
    """Let huggingface_hub draw its progress bars on terminals only."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def silence_libraries() -> None:
    """Silence the log messages and progress bars of Transformers and torch."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
