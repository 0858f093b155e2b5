"""Rows of a file -> predictions in a file, in constant memory; knows files and chunks, nothing of graphs."""

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
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import OPEN_VOCABULARY_TOP_K, Task
from ptexport.runtime.engine.turns import CHUNK_TEXTS
from ptexport.runtime.errors import DataError, OutputError, PtexportError, saying_what_the_disk_refused
from ptexport.runtime.rows import Row, check_texts

_COMPARED_ROWS = 16
_SAME = 1e-3  # of a probability: more than batches of other lengths change


def predict_rows(
    task: Task, rows: Iterable[Row], *, strict: bool = False, top_k: int | None = None
) -> Iterator[tuple[Row, Prediction]]:
    """Predict the labels of rows as they come, in order, `CHUNK_TEXTS` at a time.

    Args:
        task: task of an open bundle.
        rows: rows with the texts that its template takes.
        strict: refuse texts that are longer than the task takes.
        top_k: as in `Engine.predict`.

    Raises:
        DataError: a row is too long for `strict`, or has a text too many or too few (says which).
    """
    read, predicted = itertools.tee(rows)  # never more than a chunk apart
    checked = (_checked(row, task) for row in read)
    if "choice" in task.entry.fields:
        predictions = task.choose_iter(((row.text, row.choices or ()) for row in checked), top_k=top_k)
    else:
        predictions = task.predict_iter((row.texts for row in checked), top_k=top_k)
    for prediction, row in zip(predictions, predicted, strict=True):
        if strict and prediction.truncated:
            raise _too_long(row, task)
        yield row, prediction


def predict_rows_of(
    engine: Engine, rows: Iterable[Row], name: str | None, *, strict: bool = False, top_k: int | None = None
) -> Iterator[tuple[Row, dict[str, Prediction]]]:
    """Predict the labels of rows for one task or for all of them, as they come.

    Args:
        engine: the open bundle.
        rows: rows with the texts that the tasks take.
        name: name of a task; `ALL`: every task; None: the only one.
        strict: as in `predict_rows`.
        top_k: as in `predict_rows`.

    Returns:
        Each row with its predictions by the task's name.

    Raises:
        DataError: as in `predict_rows`; or a task is a multiple choice, which cannot be predicted with others.
    """
    if name != ALL:
        task = engine.task(name)
        for row, prediction in predict_rows(task, rows, strict=strict, top_k=top_k):
            yield row, {task.entry.name: prediction}
        return
    for task in engine.tasks.values():
        if "choice" in task.entry.fields:
            raise DataError(
                f"task all: {task.entry.name} is a multiple choice, which is predicted alone; name one task"
            )
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_TEXTS)):
        for task, row in itertools.product(engine.tasks.values(), chunk):
            _checked(row, task)
        for row, by_task in zip(chunk, engine.predict_all([row.texts for row in chunk], top_k=top_k), strict=True):
            for task_name, prediction in by_task.items():
                if strict and prediction.truncated:
                    raise _too_long(row, engine.task(task_name))
            yield row, by_task


def _checked(row: Row, task: Task) -> Row:
    check_texts(row, task.entry.fields)
    return row


def _too_long(row: Row, task: Task) -> DataError:
    return DataError(
        f"{row.where}: the text is longer than the {task.entry.max_length} tokens of the bundle; "
        "shorten it, or leave out --strict"
    )


_TRUNCATED = {"truncated": True}


def json_lines(row: Row, predictions: Mapping[str, Prediction], *, named: bool) -> Iterator[bytes]:
    """Encode a row and its predictions as lines of JSON, one per task.

    Args:
        row: the row.
        predictions: its predictions by the task's name.
        named: whether each line names its task, as it does for bundles of several.
    """
    for start, prediction in zip(_line_starts(row, predictions, named=named), predictions.values(), strict=True):
        record: dict[str, object] = {"label": prediction.label, "probabilities": prediction.probabilities}
        if prediction.truncated:
            record |= _TRUNCATED
        yield start + msgspec.json.encode(record)[1:] + b"\n"


def _line_starts(row: Row, names: Iterable[str], *, named: bool) -> list[bytes]:
    """Encode what the lines of a row begin with."""
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices}
    own = {column: value for column, value in columns.items() if value is not None}
    return [msgspec.json.encode(own | ({"task": name} if named else {}))[:-1] + b"," for name in names]


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

    The file appears when all rows are done. Until then they are in `PATH.KIND.partial`, where KIND holds the start of
    the bundle's digest, the task and `top_k`, so that predictions of two kinds never mix.

    Args:
        engine: the open bundle.
        rows: rows, read once, in order.
        path: the file; a pipe or device is written to directly.
        task: name of a task; `ALL`: every task, a line each; None: the only one.
        resume: keep the rows that were done before and continue after them; a file that exists is finished.
        force: replace an existing file.
        strict: refuse texts that are longer than the task takes.
        top_k: as in `Engine.predict`.
        report: called with the number of rows done.

    Returns:
        What this call did, without the rows that were done before.

    Raises:
        OutputError: the file exists or was begun and neither `resume` nor `force` is given, its rows are not those that
            were done before, it is of another bundle, another process is writing it, or the disk refuses.
        DataError: a row cannot be read or does not fit; the rows before it are kept for `resume`.
    """
    counted = _Lines(engine, task, strict, top_k, report)
    kind = engine.manifest.digest[:8] + ("" if task is None else f".{task}") + ("" if top_k is None else f".top{top_k}")
    partial = path.with_name(f"{path.name}.{kind}.partial")
    with saying_what_the_disk_refused(
        path, "check the path and its permissions, or free some space, and go on with --resume"
    ):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as stream:
                stream.writelines(counted.lines(rows))
        elif path.exists() and resume and not partial.exists():
            counted.check_finished(path, rows)
        elif path.exists() and not force and not resume:
            raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
        elif path.exists() and resume:
            raise OutputError(f"{path}: exists already, and {partial.name} was begun for it; remove one of them")
        elif partial.exists() and not resume and not force:
            raise OutputError(f"{partial}: begun before; go on with --resume, or begin anew with --force")
        else:
            _fill(path, partial, counted, rows, resume=resume)
    return counted.counts


def _fill(path: Path, partial: Path, counted: "_Lines", rows: Iterator[Row], *, resume: bool) -> None:
    """Append lines to those that are there already; a file without any is not kept if a row fails."""
    if fcntl is None:
        raise OutputError(f"{path}: needs file locks as Linux and macOS have them; print the answers instead")
    with partial.open("ab+") as file:
        _lock(file, partial)
        if not resume:
            file.truncate(0)
        counted.done, kept_bytes = counted.skip(file, rows, partial)
        file.truncate(kept_bytes)  # a line cut short at the end
        try:
            file.writelines(counted.lines(rows))
        except PtexportError:
            file.flush()
            if partial.stat().st_size == 0:
                partial.unlink()
            raise
        file.flush()
        partial.replace(path)  # while it is locked


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
    """Lines of rows, and their counts."""

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

    def lines(self, rows: Iterable[Row]) -> Iterator[bytes]:
        predicted = predict_rows_of(self._engine, rows, self._task, strict=self._strict, top_k=self._top_k)
        for row, by_task in predicted:
            yield b"".join(json_lines(row, by_task, named=self._named))
            self.done += 1
            self.counts.rows += 1
            self.counts.unlabelled += sum(prediction.label is None for prediction in by_task.values())
            self.counts.truncated += any(prediction.truncated for prediction in by_task.values())
            if self.done % CHUNK_TEXTS == 0:  # as often as there is news
                self._report(self.done)
        self._report(self.done)

    def skip(self, file: BinaryIO, rows: Iterator[Row], path: Path) -> tuple[int, int]:
        """Skip the rows whose lines a file has; returns their number and the bytes of their lines."""
        truncated = msgspec.json.encode(_TRUNCATED)[1:-1]  # no text can hold it: its quotes would be escaped
        file.seek(0)
        done = end = 0
        while lines := list(itertools.islice(file, len(self._names))):
            if len(lines) < len(self._names) or not lines[-1].endswith(b"\n"):
                break
            row = next(rows, None)
            starts = [] if row is None else _line_starts(row, self._names, named=self._named)
            if not starts or not all(line.startswith(start) for line, start in zip(lines, starts, strict=True)):
                where = "the end of the input" if row is None else row.where
                raise OutputError(f"{path}: holds other rows than the input, from {where} on; begin anew with --force")
            if self._strict and row is not None and any(truncated in line for line in lines):
                raise _too_long(row, self._engine.task(self._names[0]))
            done, end = done + 1, end + sum(map(len, lines))
        return done, end

    def check_finished(self, path: Path, rows: Iterator[Row]) -> None:
        """Check that a file holds this bundle's predictions for these rows, by its first ones."""
        first = list(itertools.islice(rows, _COMPARED_ROWS))
        with path.open("rb") as file:
            lines = list(itertools.islice(file, len(first) * len(self._names)))
            self.done, _ = self.skip(file, itertools.chain(first, rows), path)
        if next(rows, None) is not None or self.done < len(first):
            raise OutputError(f"{path}: holds fewer rows than the input; begin anew with --force")
        predicted = predict_rows_of(self._engine, first, self._task, top_k=sys.maxsize)
        mine = [(name, prediction) for _, by_task in predicted for name, prediction in by_task.items()]
        for line, (name, prediction) in zip(lines, mine, strict=True):
            if not self._is_same(_probabilities(line), name, prediction.probabilities):
                raise OutputError(
                    f"{path}: holds predictions of another bundle or --top-k; choose another name, or use --force"
                )
        self._report(self.done)

    def _is_same(self, got: Mapping[str, float], name: str, mine: Mapping[str, float]) -> bool:
        is_open = self._engine.task(name).entry.labels is None
        wanted = min(len(mine), self._top_k or (OPEN_VOCABULARY_TOP_K if is_open else len(mine)))
        return len(got) == wanted and all(abs(got[label] - mine.get(label, -1)) <= _SAME for label in got)


def _probabilities(line: bytes) -> dict[str, float]:
    """Read an answer's probabilities; none if the line is no answer of ours."""
    try:
        return msgspec.json.decode(line, type=_Answer).probabilities
    except msgspec.DecodeError:
        return {}


class _Answer(msgspec.Struct):
    probabilities: dict[str, float]


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other processes out until the file is closed, by whatever end this one meets."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise OutputError(f"{path}: another ptexport is writing it; wait for it, or choose another name") from e
