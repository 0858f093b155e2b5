"""The columns of a record -> a Row. Knows nothing about files."""

import difflib
import functools
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.row import Row, check_choices

_PARTS = ("text", "text_b", "label", "choices")
_NAMED_COLUMNS = 12  # in a message
_UNPUBLISHED = -1  # the hub's label of rows whose label is not published


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns become the parts of a row.

    Attributes:
        text: format of the text over columns, such as `{title}. {description}`. If all names are numbers, the file has
            no header, and they are positions from 1.
        text_b: format of the second text; None: the column `text_b`, if there is one.
        label: column of the label; None: no label is read.
        choices: column of the candidates of a multiple choice.
        label_names: names by label value, such as `{"0": "no", "1": "yes"}`; empty: labels are names.
    """

    text: str = "{text}"
    text_b: str | None = None
    label: str | None = "label"
    choices: str = "choices"
    label_names: dict[str, str] = {}

    @classmethod
    def parse(
        cls,
        columns: str | None,
        text_format: str | None,
        text_b_format: str | None,
        label_names: str | None,
        *,
        base: "Columns | None" = None,
    ) -> "Columns":
        """Parse the options `--columns`, `--text-format`, `--text-b-format` and `--label-names`.

        Args:
            columns: `text=NAME,text_b=NAME,label=NAME,choices=NAME`, any of them.
            text_format: format of the text over columns.
            text_b_format: format of the second text over columns.
            label_names: names of the labels 0, 1, …; or `VALUE=NAME,VALUE=NAME`.
            base: what the options do not say; None: the defaults.

        Raises:
            DataError: an option is not as described, or two options contradict each other.
        """
        base = base or cls()
        named = _parse_columns(columns) if columns else {}
        formats = {"text": text_format, "text_b": text_b_format}
        for part, format_ in formats.items():
            if format_ is not None and part in named:
                option = part.replace("_", "-")
                raise DataError(f"columns {columns!r}: got {part} and --{option}-format; give one of the two")
            if format_ is not None and not _placeholders(format_):
                raise DataError(f"format {format_!r}: names no column; write a column's name in braces, {{NAME}}")
            if format_ is None and part in named:
                formats[part] = "{" + named[part] + "}"
        return cls(
            text=formats["text"] or base.text,
            text_b=formats["text_b"] or base.text_b,
            label=named.get("label", base.label),
            choices=named.get("choices", base.choices),
            label_names=_parse_label_names(label_names) if label_names else base.label_names,
        )

    @property
    def numbered(self) -> bool:
        """Whether columns are named by their position, since the file has no header."""
        return all(name.isdecimal() for name in _placeholders(self.text))

    def options(self) -> dict[str, str | None]:
        """Return the options that `parse` takes, as it takes them."""
        texts = {"text": self.text, "text_b": self.text_b}
        bare = {part: _placeholders(format_)[0] for part, format_ in texts.items() if format_ and _is_bare(format_)}
        parts = {**bare, "label": self.label, "choices": self.choices}
        named = [f"{part}={name}" for part, name in parts.items() if name != part]
        return {
            "columns": ",".join(named) or None,
            "text_format": None if "text" in bare else self.text,
            "text_b_format": None if "text_b" in bare else self.text_b,
            "label_names": ",".join(f"{value}={name}" for value, name in self.label_names.items()) or None,
        }

    def without_label(self) -> "Columns":
        """Return the same without a label, for rows that are to be predicted."""
        return msgspec.structs.replace(self, label=None, label_names={})

    def with_classes(self, classes: Mapping[str, Sequence[str]]) -> "Columns":
        """Return the same with the names of a data set's own classes, by column, unless other names are given."""
        if self.label is None or self.label_names or self.label not in classes:
            return self
        return msgspec.structs.replace(self, label_names={str(i): name for i, name in enumerate(classes[self.label])})

    def names(self) -> set[str]:
        """Return the names of all columns that may be read."""
        formats = (self.text, self.text_b or "{text_b}")
        read = {name for format_ in formats for name in _placeholders(format_)} | {self.choices}
        return read if self.label is None else read | {self.label}

    def describe(self, record: Mapping[str, Any] | None = None) -> str:
        """Describe in a few words which columns are read, of a record if one is given."""
        text_b = self.text_b or ("{text_b}" if record and record.get("text_b") is not None else None)
        said = [f"text from {_shown(self.text)}"]
        said += [f"text_b from {_shown(text_b)}"] if text_b is not None else []
        said += [f"choices from {self.choices!r}"] if record and record.get(self.choices) is not None else []
        if self.label is not None and (record is None or self.label in record):
            said.append(f"label from {self.label!r}")
        return ", ".join(said)

    def row(self, record: Mapping[str, Any], where: str, keep: Sequence[str] | None = ()) -> Row:
        """Make a row from a record.

        Args:
            record: values by column.
            where: file and line, for messages.
            keep: columns that the row keeps for its prediction; None: all.

        Raises:
            DataError: a column is missing (but for `label`, the default); a text is neither a string nor a number;
                `choices` fail `check_choices`; the label has no name, or is neither one of the choices nor the number
                of one; or a column to keep is not JSON.
        """
        if self.label not in (None, "label", *record):
            raise _no_column(self.label, "label", record, where)
        text_b = self.text_b or ("{text_b}" if record.get("text_b") is not None else None)
        choices = record.get(self.choices)
        if choices is not None:
            choices = check_choices(choices, where)
            _check_unicode("".join(choices), self.choices, where)
        return Row(
            where=where,
            text=_fill(self.text, "text", record, where),
            text_b=None if text_b is None else _fill(text_b, "text_b", record, where),
            choices=choices,
            label=None if self.label is None else self._label(record.get(self.label), choices, where),
            kept={name: _kept(record, name, where) for name in (record if keep is None else keep)},
        )

    def _label(self, label: object, choices: tuple[str, ...] | None, where: str) -> str | None:
        if label is None or (isinstance(label, str) and not label.strip()):
            return None
        if choices is not None:
            return _chosen(label, choices, where)
        if not isinstance(label, str | int | float):
            raise DataError(f"{where}: '{self.label}' is {_json(label)}, need the name of a label")
        name = label.strip() if isinstance(label, str) else json.dumps(label)
        if not self.label_names:
            return name
        if name in self.label_names:
            return self.label_names[name]
        if name in self.label_names.values():
            return name
        if label == _UNPUBLISHED:
            return None
        known = ",".join(f"{value}={named}" for value, named in self.label_names.items())
        raise DataError(f"{where}: label {name!r} has no name in --label-names {known}; add {name}=NAME")


def _is_bare(format_: str) -> bool:
    """Return whether a format is one column that `--columns` can name."""
    names = _placeholders(format_)
    return [words for words, _ in _pieces(format_)] == [""] and "," not in names[0] and names[0] == names[0].strip()


def _shown(format_: str) -> str:
    """Show a format; of one column alone, its name."""
    return repr(_placeholders(format_)[0]) if _is_bare(format_) else repr(format_)


def _parse_columns(columns: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in columns.split(",")]
    named = {part.strip(): name.strip() for part, _, name in pairs}
    wrong = next((part for part in named if part not in _PARTS or not named[part]), None)
    if wrong is not None or len(named) < len(pairs):
        raise DataError(
            f"columns {columns!r}: need PART=NAME,PART=NAME with each part once, of {', '.join(_PARTS)}; for example "
            "text=title,label=class"
        )
    return named


def _parse_label_names(names: str) -> dict[str, str]:
    entries = [entry.strip() for entry in names.split(",")]
    pairs = [entry.partition("=") for entry in entries]
    have_values = {bool(equals) for _, equals, _ in pairs}
    if have_values == {True}:
        parsed = {value.strip(): name.strip() for value, _, name in pairs}
    else:
        parsed = {str(value): entry for value, entry in enumerate(entries)}
    numbered = any(re.match(r"\d+\s*:", entry) for entry in entries)  # 1:NAME is meant as 1=NAME
    if numbered or len(parsed) < len(entries) or "" in parsed.values() or len(have_values) > 1:
        raise DataError(f"label-names {names!r}: need VALUE=NAME,VALUE=NAME; or NAME,NAME for 0, 1, …")
    return parsed


@functools.cache
def _pieces(format_: str) -> tuple[tuple[str, str | None], ...]:
    """Split a format into words and the column that follows them.

    Raises:
        DataError: the format is not one.
    """
    try:
        parsed = list(string.Formatter().parse(format_))
    except ValueError as e:
        raise DataError(f"format {format_!r}: {e}; write columns as {{NAME}}, and braces as {{{{ }}}}") from e
    if any(name == "" or spec or conversion for _, name, spec, conversion in parsed):
        raise DataError(f"format {format_!r}: need plain columns, {{NAME}}; leave out what follows a name")
    return tuple((words, name) for words, name, _, _ in parsed)


def _placeholders(format_: str) -> list[str]:
    return [name for _, name in _pieces(format_) if name is not None]


def _fill(format_: str, part: str, record: Mapping[str, Any], where: str) -> str:
    text = "".join(
        words + ("" if name is None else _value(record, name, part, where, format_)) for words, name in _pieces(format_)
    )
    _check_unicode(text, part, where)
    return text


def _value(record: Mapping[str, Any], name: str, part: str, where: str, format_: str) -> str:
    if name not in record:
        raise _no_column(name, part, record, where, format_)
    value = record[name]
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"{where}: '{name}' is {_json(value)}, need a string; correct the row, or name another column")
    return value if isinstance(value, str) else json.dumps(value)


def _no_column(
    name: str | None, part: str, record: Mapping[str, Any], where: str, format_: str | None = None
) -> DataError:
    """Make the error about a column that is not there; `format_` is the format that names it, if any."""
    close = difflib.get_close_matches(name or "", record, n=1)
    if format_ is not None and not _is_bare(format_):
        advice = f"correct --{part.replace('_', '-')}-format {format_!r}"
    else:
        advice = f"say which one it is with --columns {part}={close[0] if close else 'NAME'}"
        advice += "; a number, if the file has no header"
    only = next(iter(record)) if len(record) == 1 else ""
    if not only.replace("_", "").replace(" ", "").isalnum() and only:
        advice += "; commas, semicolons, tabs or bars separate columns"
    hint = f", did you mean {close[0]!r}" if close else ""
    return DataError(f"{where}: no column {name!r}, got {_names(record)}{hint}; {advice}")


def _kept(record: Mapping[str, Any], name: str, where: str) -> object:
    """Return a value as JSON has it; what JSON has not, such as a time stamp, becomes a string."""
    if name not in record:
        raise DataError(f"{where}: no column {name!r} to keep, got {_names(record)}; correct --keep")
    try:
        value: object = msgspec.json.decode(msgspec.json.encode(record[name], enc_hook=str))
    except (TypeError, ValueError) as e:
        raise DataError(f"{where}: '{name}' cannot be kept ({e}); correct the row, or leave it out of --keep") from e
    return value


def _names(record: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(repr, list(record)[:_NAMED_COLUMNS]))}{', …' * (len(record) > _NAMED_COLUMNS)}]"


def _json(value: object) -> str:
    return json.dumps(value, default=repr)[:40]


def _check_unicode(text: str, column: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where}: '{column}' holds half of a surrogate pair, need Unicode; correct the text") from e


def _chosen(label: object, choices: Sequence[str], where: str) -> str:
    """Return the right candidate, given its text or its number from 0."""
    if label in choices:
        return str(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(choices):
        return choices[label]
    raise DataError(
        f"{where}: got label {_json(label)}, need one of the {len(choices)} choices; give its text, or its number "
        "from 0"
    )
