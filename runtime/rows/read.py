"""A file -> rows, one at a time."""

import codecs
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.row import Row
from ptexport.runtime.rows.tables import TABLES, read_table
from ptexport.runtime.rows.text import DELIMITED, JSON, Records, read_text

STDIN = Path("-")
"""Stands for standard input."""

_ENDINGS = (*DELIMITED, *JSON, *TABLES)


def read_rows(
    path: Path,
    columns: Columns | None = None,
    *,
    keep: Sequence[str] | None = (),
    say: Callable[[str], None] = lambda said: None,
) -> Iterator[Row]:
    """Read rows from a file, one at a time and in order.

    Args:
        path: `.csv` or `.tsv`, with a header unless the columns are numbers; commas, semicolons, tabs or bars are
            found. `.json`, `.jsonl` or `.ndjson`: one object per line, or an array of objects, which is read whole.
            `.parquet`, `.arrow` or `.feather`, with the extra `parquet`. `-` is standard input; it and names without
            an ending are JSON if they begin with `{` or `[`, else CSV. Text is UTF-8, with or without a byte order
            mark.
        columns: which columns are read; None: `text`, `text_b`, `choices` and `label`.
        keep: further columns that each row keeps; None: all.
        say: called once with a sentence about the file and its columns.

    Raises:
        DataError: the file cannot be read, has no rows, or a row is not as described (names the line).
        MissingExtraError: the file needs the extra `parquet`.
    """
    columns = columns or Columns()
    ending = path.suffix.lower()
    if ending not in (*_ENDINGS, ""):
        raise DataError(f"{path}: got a name that ends in {ending!r}, need {', '.join(_ENDINGS)}; convert or rename it")
    empty = True
    try:
        with ExitStack() as stack:
            found = _open(path, ending, stack, columns, keep)
            columns = columns.with_classes(found.classes)
            for where, record in found.records:
                row = columns.row(record, where, keep)
                if empty:
                    say(f"data {_name(path)}: {found.kind}, {columns.describe(record)}")
                empty = False
                yield row
    except UnicodeDecodeError as e:
        where, encoding = _not_utf8(path)
        advice = f"convert it, for example with iconv -f {encoding} -t utf-8"
        raise DataError(f"{path}{where}: not UTF-8 ({e.reason}); {advice}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the path") from e
    if empty:
        raise DataError(f"{_name(path)}: got no rows, need at least one; check the file")


def _open(path: Path, ending: str, stack: ExitStack, columns: Columns, keep: Sequence[str] | None) -> Records:
    if ending in TABLES:
        wanted = None if keep is None else columns.names() | set(keep)
        return read_table(path, stack.enter_context(path.open("rb")), wanted)
    # Standard input stays open, so that a second reader gets its end rather than an error.
    file: int | Path = sys.stdin.fileno() if path == STDIN else path
    lines = open(file, encoding="utf-8-sig", newline="", closefd=path != STDIN)  # noqa: SIM115
    stack.enter_context(lines)
    return read_text(_name(path), ending, lines, has_header=not columns.numbered)


def _name(path: Path) -> str:
    return "standard input" if path == STDIN else path.name


def count_lines(path: Path) -> int | None:
    """Count the lines of a text file, which is about the number of rows; None: it is no such file."""
    try:
        if not path.is_file() or path.suffix.lower() in TABLES:
            return None
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return None


def _not_utf8(path: Path) -> tuple[str, str]:
    """Return " line N" for the first line that is not UTF-8, and the likely encoding; a pipe cannot be read again."""
    if not path.is_file():
        return "", "latin1"
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "", "utf-16"
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" line {number}", "latin1"
    return "", "latin1"
