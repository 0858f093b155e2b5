"""Rows in, predictions out, in constant memory; knows files and chunks, nothing of graphs."""

import itertools
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ptexport.runtime.engine import Engine, Prediction
from ptexport.runtime.errors import DataError, OutputError, PtexportError
from ptexport.runtime.rows import Row

CHUNK_ROWS = 1024
"""Rows held at a time: enough to sort by length, so that little is padded."""


def predict_rows(engine: Engine, rows: Iterable[Row]) -> Iterator[tuple[Row, Prediction]]:
    """Label rows as they come, in order, `CHUNK_ROWS` at a time.

    Raises:
        DataError: a row has one text where the template takes two or the other way round (says which).
    """
    pair = "text_b" in engine.manifest.fields
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        for row in chunk:
            if (row.text_b is not None) != pair:
                raise DataError(f"{row.where}: need {' and '.join(engine.manifest.fields)}; mend the row")
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
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.writelines(lines)
                file.close()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except PtexportError:
        raise
    except OSError as e:
        raise OutputError(
            f"{path}: cannot be written ({e.strerror or e}); choose another place or free some space"
        ) from e
