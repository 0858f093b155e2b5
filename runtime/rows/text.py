"""Lines of CSV or JSON -> records."""

import csv
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ptexport.runtime.errors import DataError

DELIMITED = (".csv", ".tsv")
JSON = (".json", ".jsonl", ".ndjson")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

Record = tuple[str, dict[str, Any]]
"""File and line, for messages; and values by column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records of a file.

    Attributes:
        kind: kind of the file, in words.
        records: the records, in order.
    """

    kind: str
    records: Iterator[Record]


def read_text(name: str, ending: str, lines: Iterator[str], *, has_header: bool = True) -> Records:
    """Find out what lines are, and read records from them.

    Args:
        name: name of the file, for messages.
        ending: its ending, one of `DELIMITED` or `JSON`; empty: JSON if the lines begin with `{` or `[`, else CSV.
        lines: its lines.
        has_header: whether the first line of CSV names the columns; otherwise their names are "1", "2" and so on.

    Raises:
        DataError: a line is not what the others are (names it).
    """
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    first = head[-1].strip()[:1] if head else ""
    lines = itertools.chain(head, lines)
    if ending in DELIMITED or (not ending and first not in ("{", "[")):
        delimiter = _find_delimiter(ending, head[-1] if head else "")
        kind = f"CSV with {_DELIMITERS[delimiter]}{'' if has_header else ' and no header'}"
        names = None if has_header else [str(i) for i, _ in enumerate(_split(head[-1] if head else "", delimiter), 1)]
        return Records(kind=kind, records=_csv_records(name, lines, delimiter, names))
    if first == "[":
        return Records(kind="JSON array", records=_array_records(name, lines))
    return Records(kind="JSON lines", records=_jsonl_records(name, lines))


def _find_delimiter(ending: str, line: str) -> str:
    """Return the delimiter that splits the first line into most columns; a tab if there is one, commas if none does."""
    if ending == ".tsv" or "\t" in line:
        return "\t"
    return max(_DELIMITERS, key=lambda delimiter: len(_split(line, delimiter)))


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _csv_records(name: str, lines: Iterable[str], delimiter: str, names: list[str] | None) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default limit is 131,072 characters
    reader = csv.DictReader(lines, names, strict=True, delimiter=delimiter)
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"{name} line 1: got columns {list(header)}, need each name once; rename one")
        for record in reader:
            where = f"{name} line {reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{where}: got more or fewer fields than the first line, need {len(header)}; "
                    f"put quotes around fields with {_DELIMITERS[delimiter]}"
                )
            yield where, record
    except csv.Error as e:
        raise DataError(f"{name} line {reader.line_num}: not CSV ({e}); check its quotes") from e


def _jsonl_records(name: str, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f'{where}: not JSON ({e}); need one object per line, such as {{"text": "…"}}') from e
        yield where, _object(record, where)


def _array_records(name: str, lines: Iterable[str]) -> Iterator[Record]:
    try:
        records = json.loads("".join(lines))
    except (ValueError, RecursionError) as e:
        raise DataError(f'{name}: not JSON ({e}); need an array of objects, such as [{{"text": "…"}}]') from e
    for number, record in enumerate(records, 1):
        where = f"{name} item {number}"
        yield where, _object(record, where)


def _object(record: object, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f'{where}: got {type(record).__name__}, need an object, such as {{"text": "…"}}')
    return record
