"""Lines of CSV or JSON -> records."""

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        classes: names of the classes by column that a data set defines itself.
    """

    kind: str
    records: Iterator[Record]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


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
    blank = 0
    first = next(lines, "")
    while first and not first.strip():
        blank, first = blank + 1, next(lines, "")
    start = first.strip()[:1]
    if ending in DELIMITED or (not ending and start not in ("{", "[")):
        return _read_csv(name, ending, first, lines, blank, has_header=has_header)
    lines = itertools.chain([first], lines)
    if start == "[":
        return Records(kind="JSON array", records=_array_records(name, lines))
    return Records(kind="JSON lines", records=_jsonl_records(name, lines, blank))


def _read_csv(name: str, ending: str, first: str, lines: Iterator[str], skipped: int, *, has_header: bool) -> Records:
    """Read CSV after `skipped` lines; Excel may say the delimiter in a first line `sep=;`."""
    said = first.strip().removeprefix("sep=") if first.startswith("sep=") else ""
    if said in _DELIMITERS:
        skipped, first = skipped + 1, next(lines, "")
    head = [first]
    while "".join(head).count('"') % 2 and (line := next(lines, "")):
        head.append(line)  # a line break within quotes
    header = "".join(head)
    delimiter = said if said in _DELIMITERS else _find_delimiter(ending, header)
    kind = f"CSV with {_DELIMITERS[delimiter]}{'' if has_header else ' and no header'}"
    names = None if has_header else [str(i) for i, _ in enumerate(_split(header, delimiter), 1)]
    return Records(kind=kind, records=_csv_records(name, itertools.chain(head, lines), delimiter, names, skipped))


def _find_delimiter(ending: str, header: str) -> str:
    """Return the delimiter that splits a header into most columns; commas if none does."""
    if ending == ".tsv":
        return "\t"
    return max(_DELIMITERS, key=lambda delimiter: len(_split(header, delimiter)))


def _split(header: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(header, newline=""), delimiter=delimiter), [])


def _csv_records(
    name: str, lines: Iterable[str], delimiter: str, names: list[str] | None, skipped: int
) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default limit is 131,072 characters
    reader = csv.DictReader(lines, names, strict=True, delimiter=delimiter)
    try:
        header = reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
        if len(set(header)) < len(header):
            raise DataError(f"{name} line 1: got columns {header}, need each name once; rename one")
        for record in reader:
            where = f"{name} line {skipped + reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{where}: got more or fewer fields than the first line, need {len(header)}; "
                    f"put quotes around fields with {_DELIMITERS[delimiter]}"
                )
            yield where, record
    except csv.Error as e:
        raise DataError(f"{name} line {skipped + max(reader.line_num, 1)}: not CSV ({e}); check its quotes") from e


def _jsonl_records(name: str, lines: Iterable[str], skipped: int) -> Iterator[Record]:
    for number, line in enumerate(lines, skipped + 1):
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
        got = "null" if record is None else type(record).__name__
        raise DataError(f'{where}: got {got}, need an object, such as {{"text": "…"}}')
    return record
