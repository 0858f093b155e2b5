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


def read_text(name: str, ending: str, lines: Iterator[str]) -> Records:
    """Find out what lines are, and read records from them.

    Args:
        name: name of the file, for messages.
        ending: its ending, one of `DELIMITED` or `JSON`; empty: JSON if the lines begin with `{` or `[`, else CSV.
        lines: its lines.

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
        delimiter = _find_delimiter(head[-1] if head else "")
        kind = f"CSV with {_DELIMITERS[delimiter]}"
        return Records(kind=kind, records=_csv_records(name, lines, delimiter))
    if first == "[":
        return Records(kind="JSON array", records=_array_records(name, lines))
    return Records(kind="JSON lines", records=_jsonl_records(name, lines))


def _find_delimiter(header: str) -> str:
    """Return the delimiter that splits a header into most columns; commas if none does."""
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _csv_records(name: str, lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default limit is 131,072 characters
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"{name} line 1: got columns {list(header)}, need each name once; rename one")
        for record in reader:
            where = f"{name} line {reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{where}: got more or fewer fields than the header, need {len(header)}; "
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
