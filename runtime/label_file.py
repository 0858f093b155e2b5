"""Rows of a file -> predictions in a file, in constant memory."""

import itertools
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.task import CHUNK_TEXTS, OPEN_VOCABULARY_TOP_K
from ptexport.runtime.errors import OutputError, PtexportError, disk_errors
from ptexport.runtime.label_rows import TRUNCATED, json_lines, line_starts, predict_rows_of, too_long
from ptexport.runtime.rows.row import Row

_COMPARED_ROWS = 16
_LABEL = b'"label":'  # follows the start of a line
_SAME = 1e-3  # of a probability: more than rounding in batches of other lengths


def label_file(
    engine: Engine,
    rows: Iterator[Row],
    path: Path,
    *,
    task: str | None = None,
    resume: bool,
    force: bool,
    strict: bool,
    top_k: int | None,
    report: Callable[[int], None],
) -> "Counts":
    """Predict the labels of rows into a file of JSON lines.

    The file appears when all rows are done. Until then they are in `PATH.KIND.partial`. KIND has the start of the
    bundle's digest, the task and `top_k`, so predictions of two kinds never mix.

    Args:
        engine: the open bundle.
        rows: rows, read once, in order.
        path: the file; a pipe or device is written directly.
        task: name of a task; `ALL`: every task, with a line each; None: the only one.
        resume: keep the rows that were done before and continue after them; a file that exists is finished.
        force: replace an existing file.
        strict: refuse texts that are longer than the task takes.
        top_k: as in `Engine.predict`.
        report: called with the number of rows done.

    Returns:
        Counts of this call, without the rows that were done before.

    Raises:
        OutputError: the file exists or was begun, and neither `resume` nor `force` is given; it has other rows, or
            predictions of another bundle; another process is writing it; or it cannot be written.
        DataError: a row cannot be read or does not fit; the rows before it are kept for `resume`.
    """
    lines = _Lines(engine, task, strict, top_k, report)
    named = task is not None and len(engine.tasks) > 1
    kind = engine.manifest.digest[:8] + (f".{task}" if named else "") + ("" if top_k is None else f".top{top_k}")
    partial = path.with_name(f"{path.name}.{kind}.partial")
    with disk_errors(path, "check the path and its permissions, or free some space, and continue with --resume"):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as stream:
                stream.writelines(lines.encode(rows))
        elif _is_finished(path, partial, resume=resume, force=force):
            lines.check_finished(path, rows)
        else:
            _fill(path, partial, lines, rows, resume=resume)
    return lines.counts


def _is_finished(path: Path, partial: Path, *, resume: bool, force: bool) -> bool:
    """Return whether an earlier call finished the file.

    Raises:
        OutputError: the file exists or was begun, and the options do not say what to do with it.
    """
    if path.exists() and resume:
        if partial.exists():
            raise OutputError(f"{path}: exists already, and {partial.name} was begun for it; remove one of them")
        return True
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    if partial.exists() and not resume and not force:
        raise OutputError(f"{partial}: begun before; continue with --resume, or start again with --force")
    return False


def _fill(path: Path, partial: Path, lines: "_Lines", rows: Iterator[Row], *, resume: bool) -> None:
    """Append the missing lines to a partial file, and rename it. If a row fails, an empty partial file is removed."""
    if fcntl is None:
        raise OutputError(
            f"{path}: got no file locks from this system, which writing needs; print the predictions instead"
        )
    with partial.open("ab+") as file:
        _lock(file, partial)
        if not resume:
            file.truncate(0)
        lines.done, kept_bytes = lines.skip(file, rows, partial)
        file.truncate(kept_bytes)  # cuts off an incomplete row
        try:
            file.writelines(lines.encode(rows))
        except PtexportError:
            file.flush()
            if partial.stat().st_size == 0:
                partial.unlink()
            raise
        file.flush()
        partial.replace(path)  # before the lock is released


@dataclass(slots=True, kw_only=True)
class Counts:
    """Counts of predictions.

    Attributes:
        rows: rows done.
        unlabelled: predictions without a label, whose probability is too low.
        truncated: rows with a text that was longer than a task takes.
    """

    rows: int = 0
    unlabelled: int = 0
    truncated: int = 0


class _Lines:
    """The lines of rows, and their counts."""

    def __init__(
        self, engine: Engine, task: str | None, strict: bool, top_k: int | None, report: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._task = task
        self._strict = strict
        self._top_k = top_k
        self._report = report
        self._named = len(engine.tasks) > 1
        self._names = list(engine.tasks) if task == ALL else [engine.task(task).entry.name]
        self.done = 0
        self.counts = Counts()

    def encode(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """Predict rows and encode their lines, the lines of a row together."""
        predicted = predict_rows_of(self._engine, rows, self._task, strict=self._strict, top_k=self._top_k)
        for row, by_task in predicted:
            yield b"".join(json_lines(row, by_task, named=self._named))
            self.done += 1
            self.counts.rows += 1
            self.counts.unlabelled += sum(prediction.label is None for prediction in by_task.values())
            self.counts.truncated += any(prediction.truncated for prediction in by_task.values())
            if self.done % CHUNK_TEXTS == 0:
                self._report(self.done)
        self._report(self.done)

    def skip(self, file: BinaryIO, rows: Iterator[Row], path: Path) -> tuple[int, int]:
        """Skip the rows that a file has all lines of; returns their number and the size of their lines in bytes."""
        truncated = msgspec.json.encode(TRUNCATED)[1:-1]  # quotes within a text are escaped, so no text can contain it
        file.seek(0)
        done = end = 0
        while lines := list(itertools.islice(file, len(self._names))):
            if len(lines) < len(self._names) or not lines[-1].endswith(b"\n"):
                break
            row = next(rows, None)
            starts = [] if row is None else line_starts(row, self._names, named=self._named)
            if not starts or not all(
                line.startswith(start + _LABEL) for line, start in zip(lines, starts, strict=True)
            ):
                where = "the end of the input" if row is None else row.where
                raise OutputError(
                    f"{path}: its rows or kept columns differ from the input's from {where} on; start again with "
                    "--force"
                )
            for line, name in zip(lines, self._names, strict=True):
                if self._strict and row is not None and truncated in line:
                    raise too_long(row, self._engine.task(name))
            done, end = done + 1, end + sum(map(len, lines))
        return done, end

    def check_finished(self, path: Path, rows: Iterator[Row]) -> None:
        """Check that a file has a line for every row, and that its first lines have this bundle's predictions."""
        first = list(itertools.islice(rows, _COMPARED_ROWS))
        with path.open("rb") as file:
            lines = list(itertools.islice(file, len(first) * len(self._names)))
            self.done, end = self.skip(file, itertools.chain(first, rows), path)
        if end < path.stat().st_size:
            raise OutputError(f"{path}: got lines after those of the input; start again with --force")
        if next(rows, None) is not None or self.done < len(first):
            raise OutputError(f"{path}: got fewer rows than the input; start again with --force")
        predicted = predict_rows_of(self._engine, first, self._task, top_k=sys.maxsize)
        mine = [(name, prediction) for _, by_task in predicted for name, prediction in by_task.items()]
        for line, (name, prediction) in zip(lines, mine, strict=True):
            if not self._is_same(_probabilities(line), name, prediction.probabilities):
                raise OutputError(
                    f"{path}: got predictions of another bundle or --top-k; choose another name, or use --force"
                )
        self._report(self.done)

    def _is_same(self, got: Mapping[str, float], name: str, mine: Mapping[str, float]) -> bool:
        is_open = self._engine.task(name).entry.labels is None
        wanted = min(len(mine), self._top_k or (OPEN_VOCABULARY_TOP_K if is_open else len(mine)))
        return len(got) == wanted and all(abs(got[label] - mine.get(label, -1)) <= _SAME for label in got)


def _probabilities(line: bytes) -> dict[str, float]:
    """Read the probabilities of a line; empty if the line is not one that `label_file` writes."""
    try:
        return msgspec.json.decode(line, type=_Line).probabilities
    except msgspec.DecodeError:
        return {}


class _Line(msgspec.Struct):
    probabilities: dict[str, float]


def _lock(file: BinaryIO, path: Path) -> None:
    """Lock a file against other processes until it is closed, also by the end of this process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise OutputError(f"{path}: another ptexport is writing this file; wait for it, or choose another name") from e
