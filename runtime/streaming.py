"""Rows in, predictions out, in constant memory; knows files and chunks, nothing of graphs."""

import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ptexport.runtime.engine import Engine, Prediction
from ptexport.runtime.errors import OutputError, PtexportError
from ptexport.runtime.rows import Row, check_texts

CHUNK_ROWS = 1024
"""Rows held at a time: enough to sort by length, so that little is padded."""


def predict_rows(engine: Engine, rows: Iterable[Row]) -> Iterator[tuple[Row, Prediction]]:
    """Label rows as they come, in order, `CHUNK_ROWS` at a time.

    Raises:
        DataError: a row has one text where the template takes two or the other way round (says which).
    """
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        for row in chunk:
            check_texts(row, engine.manifest.fields)
        texts = [row.text if row.text_b is None else (row.text, row.text_b) for row in chunk]
        yield from zip(chunk, engine.predict(texts), strict=True)


def json_line(row: Row, prediction: Prediction) -> bytes:
    """Encode one answer with the text it is for, as a line of JSON."""
    texts = {"text": row.text} if row.text_b is None else {"text": row.text, "text_b": row.text_b}
    answer = {**texts, "label": prediction.label, "probabilities": prediction.probabilities}
    return msgspec.json.encode(answer) + b"\n"


def write_lines(path: Path, lines: Iterable[bytes], *, force: bool) -> None:
    """Write a file whole or not at all; a pipe or device is written to as it is.

    Raises:
        OutputError: the file exists and `force` is not given, or cannot be written.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as stream:
                stream.writelines(lines)
            return
        if path.exists() and not force:
            raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.writelines(lines)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except PtexportError:
        raise
    except OSError as e:
        raise OutputError(
            f"{path}: cannot be written ({e.strerror or e}); choose another place or free some space"
        ) from e
