"""Rows in, predictions out, in constant memory; knows files and chunks, nothing of graphs."""

import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from ptexport.runtime.engine import Engine, Prediction
from ptexport.runtime.errors import DataError, OutputError, PtexportError
from ptexport.runtime.rows import Row, check_texts

CHUNK_ROWS = 1024
"""Rows held at a time: enough to sort by length, so that little is padded."""


def predict_rows(engine: Engine, rows: Iterable[Row], *, strict: bool = False) -> Iterator[tuple[Row, Prediction]]:
    """Label rows as they come, in order, `CHUNK_ROWS` at a time.

    Args:
        engine: the bundle.
        rows: with the texts its template takes.
        strict: refuse texts that are longer than the bundle takes.

    Raises:
        DataError: a row is too long for `strict`, or has a text too many or too few (says which).
    """
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        for row in chunk:
            check_texts(row, engine.manifest.fields)
        texts = [row.text if row.text_b is None else (row.text, row.text_b) for row in chunk]
        for row, prediction in zip(chunk, engine.predict(texts), strict=True):
            if strict and prediction.truncated:
                raise DataError(
                    f"{row.where}: the text is longer than the {engine.manifest.max_length} tokens of the bundle; "
                    "shorten it, or leave out --strict"
                )
            yield row, prediction


def json_line(row: Row, prediction: Prediction) -> bytes:
    """Encode one answer with the text it is for, as a line of JSON."""
    answer: dict[str, object] = {"label": prediction.label, "probabilities": prediction.probabilities}
    if prediction.truncated:
        answer["truncated"] = True
    return _texts(row) + msgspec.json.encode(answer)[1:] + b"\n"


def _texts(row: Row) -> bytes:
    """How a row's line begins."""
    texts = {"text": row.text} if row.text_b is None else {"text": row.text, "text_b": row.text_b}
    return msgspec.json.encode(texts)[:-1] + b","


def label_file(
    engine: Engine,
    rows: Iterator[Row],
    path: Path,
    *,
    resume: bool,
    force: bool,
    strict: bool,
    report: Callable[[int], None],
) -> int:
    """Label rows into a file of JSON lines, which is there when all are; until then they are in `PATH.….partial`.

    That name holds the start of the bundle's digest, so that answers of two bundles never mix.

    Args:
        engine: the bundle.
        rows: read once, in order.
        path: the file; a pipe or device is written to as it is.
        resume: keep the rows that were labelled before and go on after them; a file that is there is finished.
        force: replace what is there.
        strict: refuse texts that are longer than the bundle takes.
        report: told how many rows are done.

    Returns:
        How many texts were truncated, of those labelled now.

    Raises:
        OutputError: the file is there or begun and neither `resume` nor `force` is given, its rows are not those that
            were labelled before, another process is writing it, or the disk refuses.
        DataError: a row that cannot be read or does not fit; those before it stay for `resume`.
    """
    counted = _Counted(engine, strict, report)
    partial = path.with_name(f"{path.name}.{engine.manifest.digest[:8]}.partial")
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as stream:
                stream.writelines(counted.lines(rows))
        elif path.exists() and resume and not partial.exists():
            _check_finished(path, rows)
        elif path.exists() and not force and not resume:
            raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
        elif partial.exists() and not resume and not force:
            raise OutputError(f"{partial}: begun before; go on with --resume, or begin anew with --force")
        else:
            _fill(partial, counted, rows, resume=resume)
            partial.replace(path)
    except PtexportError:
        raise
    except OSError as e:
        raise OutputError(
            f"{path}: cannot be written ({e.strerror or e}); free some space and go on with --resume"
        ) from e
    return counted.truncated


def _fill(partial: Path, counted: "_Counted", rows: Iterator[Row], *, resume: bool) -> None:
    """Append lines to those that are there already; a file without any is not kept if a row fails."""
    with partial.open("ab+") as file:
        _lock(file, partial)
        if not resume:
            file.truncate(0)
        counted.done, kept_bytes = _skip(file, rows, partial)
        file.truncate(kept_bytes)  # a line cut short at the end
        try:
            file.writelines(counted.lines(rows))
        except PtexportError:
            file.flush()
            if partial.stat().st_size == 0:
                partial.unlink()
            raise


def _check_finished(path: Path, rows: Iterator[Row]) -> None:
    with path.open("rb") as file:
        _skip(file, rows, path)
    if next(rows, None) is not None:
        raise OutputError(f"{path}: holds fewer rows than the input; begin anew with --force")


class _Counted:
    """Lines for rows, and how many there were."""

    def __init__(self, engine: Engine, strict: bool, report: Callable[[int], None]) -> None:
        self._engine = engine
        self._strict = strict
        self._report = report
        self.done = 0
        self.truncated = 0

    def lines(self, rows: Iterable[Row]) -> Iterator[bytes]:
        for row, prediction in predict_rows(self._engine, rows, strict=self._strict):
            yield json_line(row, prediction)
            self.done += 1
            self.truncated += prediction.truncated
            if self.done % CHUNK_ROWS == 0:  # as often as there is news
                self._report(self.done)
        self._report(self.done)


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other processes out until the file is closed, by whatever end this one meets."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise OutputError(f"{path}: another ptexport is writing it; wait for it, or choose another name") from e


def _skip(file: BinaryIO, rows: Iterator[Row], path: Path) -> tuple[int, int]:
    """Skip the rows that a file has answers for, and return how many they are and their lines' bytes."""
    file.seek(0)
    done = end = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        row = next(rows, None)
        if row is None or not line.startswith(_texts(row)):
            where = "the end of the input" if row is None else row.where
            raise OutputError(f"{path}: holds other rows than the input, from {where} on; begin anew with --force")
        done, end = done + 1, end + len(line)
    return done, end


def write_whole(path: Path, content: bytes, *, force: bool) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise OutputError(
            f"{path}: cannot be written ({e.strerror or e}); choose another place or free some space"
        ) from e
