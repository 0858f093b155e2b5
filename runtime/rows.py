"""JSONL or CSV -> rows, one at a time."""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import DataError

_MOST_NAMED = 30  # labels in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One text, a pair of texts, or a text with candidates for the second; with its label, if the file has one.

    Attributes:
        where: file and line of the row, for messages.
        text: the text; may be empty.
        text_b: the second text of a pair.
        choices: candidates of a multiple choice.
        label: name of the label; of a multiple choice, the right candidate.
    """

    where: str
    text: str
    text_b: str | None = None
    choices: tuple[str, ...] | None = None
    label: str | None = None

    @property
    def texts(self) -> str | tuple[str, str]:
        """The text, or both texts of a pair; of a multiple choice the text alone."""
        return self.text if self.text_b is None else (self.text, self.text_b)


def check_texts(row: Row, fields: Sequence[str]) -> None:
    """Check that a row has the texts that a template takes.

    Args:
        row: the row.
        fields: texts that the template takes: `["text"]`, `["text", "text_b"]` or `["text", "choice"]`.

    Raises:
        DataError: a text is missing, or there is one too many (names the line).
    """
    for field, value, name in (("text_b", row.text_b, "'text_b'"), ("choice", row.choices, "list 'choices'")):
        if (field in fields) != (value is not None):
            got, need = ("a", "none") if value is not None else ("no", "one")
            raise DataError(f"{row.where}: got {got} {name}, the template takes {need}; change the template or the row")


def check_choices(choices: object, where: str) -> tuple[str, ...]:
    """Check the candidates of a multiple choice, and return them.

    Raises:
        DataError: `choices` is not a list of two or more strings, a string is empty, or two strings are equal.
    """
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        got = repr(choices)[:40]
        raise DataError(f"{where}: 'choices' is {got}, need a list of strings; CSV has no lists, so write JSON lines")
    if len(choices) < 2:
        raise DataError(f"{where}: got {len(choices)} 'choices', need at least 2; add some, or leave the row out")
    bare = [choice.strip() for choice in choices]
    if "" in bare or len(set(bare)) < len(bare):
        fault = "an empty string" if "" in bare else "the same text twice"
        raise DataError(f"{where}: got {fault} in 'choices', need different texts; correct the row")
    return tuple(choices)


def check_label(row: Row, labels: Collection[str], advice: str) -> str:
    """Check that a row has a known label, and return it.

    Args:
        row: the row.
        labels: the known labels.
        advice: end of the message about an unknown label.

    Raises:
        DataError: the label is missing or unknown (names the line).
    """
    if row.label is not None and row.label in labels:
        return row.label
    first = ", ".join(map(repr, itertools.islice(labels, _MOST_NAMED)))
    known = f"[{first}]" if len(labels) <= _MOST_NAMED else f"the {len(labels)} labels {first}, …"
    if row.label is None:
        raise DataError(f"{row.where}: no column 'label'; add it, with one of {known}")
    raise DataError(f"{row.where}: got label {row.label!r}, need one of {known}; {advice}")


def count_lines(path: Path) -> int | None:
    """Count the lines of a file, which is about the number of rows; None: it is a pipe or cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return None


def read_rows(path: Path) -> Iterator[Row]:
    """Read rows from a file, one at a time and in order.

    Args:
        path: a `.csv` file with a header and commas, or a file with one JSON object per line (`.jsonl`, `.ndjson`,
            `.json`, or without an extension). Columns: `text`, optional `text_b` or `choices`, and `label`; others are
            ignored. UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read, has no rows, or a row is not as described (names the line).
    """
    empty = True
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise DataError(
            f"{path}: got a name that ends in {path.suffix!r}, need .jsonl or .csv; convert or rename the file"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for row in parse(path.name, lines):
                empty = False
                yield row
    except UnicodeDecodeError as e:
        advice = "convert it, for example with iconv -f latin1 -t utf-8"
        raise DataError(f"{path}{_first_line_not_utf8(path)}: not UTF-8 ({e.reason}); {advice}") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the path") from e
    if empty:
        raise DataError(f"{path}: got no rows, need at least one; check the file")


def _first_line_not_utf8(path: Path) -> str:
    """Return " line N" for the first line that is not UTF-8; empty for a pipe, which cannot be read again."""
    if not path.is_file():
        return ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" line {number}"
    return ""


def _jsonl_rows(name: str, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f'{where}: not JSON ({e}); need one object per line, such as {{"text": "…"}}') from e
        if not isinstance(record, dict):
            raise DataError(f'{where}: got {type(record).__name__}, need an object, such as {{"text": "…"}}')
        yield row_of(record, where)


def _csv_rows(name: str, lines: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default limit is 131,072 characters
    reader = csv.DictReader(lines, strict=True)
    try:
        header = reader.fieldnames or []
        separator = next((s for s in (";", "\t", "|") if len(header) == 1 and s in header[0]), None)
        if separator is not None:
            raise DataError(f"{name} line 1: columns are separated by {separator!r}, need commas; convert the file")
        if len(set(header)) < len(header):
            raise DataError(f"{name} line 1: got columns {list(header)}, need each name once; rename one")
        for record in reader:
            where = f"{name} line {reader.line_num}"
            if None in record or None in record.values():
                raise DataError(
                    f"{where}: got more or fewer fields than the header, need {len(header)}; "
                    "put quotes around fields with commas"
                )
            yield row_of(record, where)
    except csv.Error as e:
        raise DataError(f"{name} line {reader.line_num}: not CSV ({e}); check its quotes") from e


_PARSERS: dict[str, Callable[[str, Iterable[str]], Iterator[Row]]] = {
    ".csv": _csv_rows,
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ""), _jsonl_rows),
}


def row_of(record: dict[str, Any], where: str) -> Row:
    """Make a row from the columns of a record.

    Raises:
        DataError: `text` is missing; a column is not a string (a label may also be a number or a boolean); `choices`
            fail `check_choices`; or the label is neither one of the choices nor the number of one.
    """
    if "text" not in record:
        raise DataError(f"{where}: no column 'text', got {sorted(record)}; rename the column that holds the text")
    for column in ("text", "text_b"):
        value = record.get(column)
        if not isinstance(value, str | None) or record["text"] is None:
            raise DataError(f"{where}: '{column}' is {json.dumps(value)[:40]}, need a string")
        _check_unicode(value or "", column, where)
    label, choices = record.get("label"), record.get("choices")
    if choices is not None:
        choices = check_choices(choices, where)
        _check_unicode("".join(choices), "choices", where)
        label = _chosen(label, choices, where)
    elif not isinstance(label, str | int | float | None):
        raise DataError(f"{where}: 'label' is {json.dumps(label)[:40]}, need a name")
    elif label is not None and not isinstance(label, str):
        label = json.dumps(label)
    return Row(where=where, text=record["text"], text_b=record.get("text_b"), choices=choices, label=label)


def _check_unicode(text: str, column: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where}: '{column}' holds half of a surrogate pair, need Unicode; correct the text") from e


def _chosen(label: object, choices: Sequence[str], where: str) -> str | None:
    """Return the right candidate, given its text or its number from 0."""
    if label is None or label in choices:
        return None if label is None else str(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return choices[label]
    got = json.dumps(label)[:40]
    raise DataError(
        f"{where}: got label {got}, need one of the {len(choices)} choices; give its text, or its number from 0"
    )
