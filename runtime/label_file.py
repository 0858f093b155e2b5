"""Rows in, predictions out, in constant memory; knows files and chunks, nothing of graphs."""

import itertools
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ptexport.runtime.engine.engine import OPEN_VOCABULARY_TOP_K, Engine
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.turns import CHUNK_TEXTS
from ptexport.runtime.errors import DataError, OutputError, PtexportError, saying_what_the_disk_refused
from ptexport.runtime.rows import Row, check_texts

_COMPARED_ROWS = 16
_SAME = 1e-3  # of a probability: more than batches of other lengths change


def predict_rows(
    engine: Engine, rows: Iterable[Row], *, strict: bool = False, top_k: int | None = None
) -> Iterator[tuple[Row, Prediction]]:
    """Label rows as they come, in order, `CHUNK_TEXTS` at a time.

    Args:
        engine: the bundle.
        rows: with the texts its template takes.
        strict: refuse texts that are longer than the bundle takes.
        top_k: as `Engine.predict` takes it.

    Raises:
        DataError: a row is too long for `strict`, or has a text too many or too few (says which).
    """
    fields = engine.manifest.fields
    asked, answered = itertools.tee(rows)  # never more than a chunk apart
    checked = (_checked(row, fields) for row in asked)
    if "choice" in fields:
        answers = engine.choose_iter(((row.text, row.choices or ()) for row in checked), top_k=top_k)
    else:
        answers = engine.predict_iter((row.texts for row in checked), top_k=top_k)
    for prediction, row in zip(answers, answered, strict=True):
        if strict and prediction.truncated:
            raise _too_long(row, engine)
        yield row, prediction


def _checked(row: Row, fields: Sequence[str]) -> Row:
    check_texts(row, fields)
    return row


def _too_long(row: Row, engine: Engine) -> DataError:
    return DataError(
        f"{row.where}: the text is longer than the {engine.manifest.max_length} tokens of the bundle; "
        "shorten it, or leave out --strict"
    )


_TRUNCATED = {"truncated": True}


def json_line(row: Row, prediction: Prediction) -> bytes:
    """Encode one answer with the text it is for, as a line of JSON."""
    answer: dict[str, object] = {"label": prediction.label, "probabilities": prediction.probabilities}
    if prediction.truncated:
        answer |= _TRUNCATED
    return _texts(row) + msgspec.json.encode(answer)[1:] + b"\n"


def _texts(row: Row) -> bytes:
    """How a row's line begins."""
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices}
    return msgspec.json.encode({name: value for name, value in columns.items() if value is not None})[:-1] + b","


def label_file(
    engine: Engine,
    rows: Iterator[Row],
    path: Path,
    *,
    resume: bool,
    force: bool,
    strict: bool,
    top_k: int | None,
    report: Callable[[int], None],
) -> "Counts":
    """Label rows into a file of JSON lines, which is there when all are; until then they are in `PATH.….partial`.

    That name holds the start of the bundle's digest, and `top_k`, so that answers of two kinds never mix.

    Args:
        engine: the bundle.
        rows: read once, in order.
        path: the file; a pipe or device is written to as it is.
        resume: keep the rows that were labelled before and go on after them; a file that is there is finished.
        force: replace what is there.
        strict: refuse texts that are longer than the bundle takes.
        top_k: as `Engine.predict` takes it.
        report: told how many rows are done.

    Returns:
        What was done now, of the rows that were not labelled before.

    Raises:
        OutputError: the file is there or begun and neither `resume` nor `force` is given, its rows are not those that
            were labelled before, it is of another bundle, another process is writing it, or the disk refuses.
        DataError: a row that cannot be read or does not fit; those before it stay for `resume`.
    """
    counted = _Lines(engine, strict, top_k, report)
    kind = engine.manifest.digest[:8] + ("" if top_k is None else f".top{top_k}")
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
    """Of rows that were labelled.

    Attributes:
        rows: how many.
        unlabelled: too unsure for a label.
        truncated: longer than the bundle takes.
    """

    rows: int = 0
    unlabelled: int = 0
    truncated: int = 0


class _Lines:
    """Lines for rows, and how many there were."""

    def __init__(self, engine: Engine, strict: bool, top_k: int | None, report: Callable[[int], None]) -> None:
        self._engine = engine
        self._strict = strict
        self._top_k = top_k
        self._report = report
        self.done = 0
        self.counts = Counts()

    def lines(self, rows: Iterable[Row]) -> Iterator[bytes]:
        for row, prediction in predict_rows(self._engine, rows, strict=self._strict, top_k=self._top_k):
            yield json_line(row, prediction)
            self.done += 1
            self.counts.rows += 1
            self.counts.unlabelled += prediction.label is None
            self.counts.truncated += prediction.truncated
            if self.done % CHUNK_TEXTS == 0:  # as often as there is news
                self._report(self.done)
        self._report(self.done)

    def skip(self, file: BinaryIO, rows: Iterator[Row], path: Path) -> tuple[int, int]:
        """Skip the rows that a file has answers for, and return how many they are and their lines' bytes."""
        truncated = msgspec.json.encode(_TRUNCATED)[1:-1]  # no text can hold it: its quotes would be escaped
        file.seek(0)
        done = end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            row = next(rows, None)
            if row is None or not line.startswith(_texts(row)):
                where = "the end of the input" if row is None else row.where
                raise OutputError(f"{path}: holds other rows than the input, from {where} on; begin anew with --force")
            if self._strict and truncated in line:
                raise _too_long(row, self._engine)
            done, end = done + 1, end + len(line)
        return done, end

    def check_finished(self, path: Path, rows: Iterator[Row]) -> None:
        """Check that a file holds this bundle's answers for these rows; whose they are, its first ones tell."""
        first = list(itertools.islice(rows, _COMPARED_ROWS))
        with path.open("rb") as file:
            lines = list(itertools.islice(file, len(first)))
            self.done, _ = self.skip(file, itertools.chain(first, rows), path)
        if next(rows, None) is not None or self.done < len(first):
            raise OutputError(f"{path}: holds fewer rows than the input; begin anew with --force")
        all_labels = predict_rows(self._engine, first, top_k=sys.maxsize)
        for line, (_, prediction) in zip(lines, all_labels, strict=True):
            got, mine = _probabilities(line), prediction.probabilities
            wanted = min(
                len(mine), self._top_k or (OPEN_VOCABULARY_TOP_K if self._engine.manifest.labels is None else len(mine))
            )
            if len(got) != wanted or any(abs(got[label] - mine.get(label, -1)) > _SAME for label in got):
                raise OutputError(
                    f"{path}: holds answers of another bundle or --top-k; choose another name, or use --force"
                )
        self._report(self.done)


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
