"""What people and machines are told while long work runs: bars on a terminal, JSON lines if asked for, or nothing."""

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
from ptexport.toolkit.prompt import distributed

LINE_EVERY_S = 1.0
"""Steps and rows are written as lines this often at most; the last ones always are."""


class ProgressBars:
    """Tells of steps, epochs, stages, rows and notes.

    Args:
        bars: shown on a terminal.
        streams: take each event as a line of JSON.
    """

    def __init__(self, bars: Progress, streams: list[TextIO]) -> None:
        self._bars = bars
        self._streams = streams
        self._task: tuple[str, TaskID] | None = None
        self._written = 0.0
        self._rows: tuple[int, int | None] = 0, None

    def step(self, done: int, total: int, loss: float) -> None:
        """Tell of an optimizer step."""
        self._advance("training", f"training, loss {loss:.3f}", done, total)
        self._line_at_times(done == total, event="step", done=done, total=total, loss=loss)

    def epoch(self, number: int, dev_accuracy: float) -> None:
        """Tell of an evaluation on dev."""
        self._print(f"epoch {number}: dev accuracy {dev_accuracy:.1%}")
        self._line(event="epoch", epoch=number, dev_accuracy=dev_accuracy)

    def note(self, message: str) -> None:
        """Say something worth knowing."""
        self._print(message)
        self._line(event="note", message=message)

    def warning(self, message: str) -> None:
        """Say what may make the result other than expected; shown where nothing else is."""
        self._print(f"warning: {message}", anyway=True)
        self._line(event="warning", message=message)

    def stage(self, name: str) -> None:
        """Tell what begins; how long it takes nobody knows."""
        self._advance(name, name, 0, None)
        self._line(event="stage", name=name)

    def rows(self, done: int, total: int | None) -> None:
        """Tell of rows compared or labelled; `total` may be unknown, or an estimate."""
        self._rows = done, total
        self._advance("rows", "rows", done, total)
        self._line_at_times(done == total, event="rows", done=done, total=total)

    def all_rows(self) -> None:
        """Tell that the rows told of last were all."""
        done, total = self._rows
        if done != total:
            self.rows(done, done)

    def end(self, event: str, **more: str) -> None:
        """Tell those who read lines how it ended; people see it anyway."""
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
            except OSError as e:  # a full disk, or a reader that has gone: no reason to lose the work told of
                self._streams.remove(stream)
                self.warning(f"{stream.name}: takes no more lines ({e.strerror or e})")


@contextmanager
def reporting(*, as_json: bool, log_file: Path | None) -> Iterator["ProgressBars"]:
    """Show progress on standard error while the block runs.

    Args:
        as_json: write JSON lines instead of bars. Without it only warnings are shown where no terminal is.
        log_file: takes the same lines too, after what it holds already.

    Raises:
        OutputError: the log file cannot be written.
    """
    with ExitStack() as stack:
        if not distributed.is_first():
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
        bars = stack.enter_context(Progress(*columns, console=console, disable=as_json or not console.is_terminal))
        report = ProgressBars(bars, streams)
        try:
            yield report
        except PtexportError as e:
            report.end("error", message=str(e))
            raise
        report.end("done")


def _close(stream: TextIO) -> None:
    with suppress(OSError):  # of lines that could not be written, which was said
        stream.close()


def silence_libraries() -> None:
    """Keep Transformers' and torch's own chatter off the screen."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
