"""Row, and checks of one row."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

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
        kept: columns of the file that go with its prediction, by name.
    """

    where: str
    text: str
    text_b: str | None = None
    choices: tuple[str, ...] | None = None
    label: str | None = None
    kept: Mapping[str, object] = dataclasses.field(default_factory=dict)

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
        raise DataError(f"{row.where}: no label, need one of {known}; name its column with --columns label=NAME")
    raise DataError(f"{row.where}: got label {row.label!r}, need one of {known}; {advice}")
