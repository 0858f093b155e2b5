"""A template as text -> its pieces.

    [P] [P*n]        one or n virtual tokens, at most 1000 in all
    {text} {text_b}  the texts of the row
    {choice}         instead of {text_b}: one candidate of the row at a time
    [MASK]           the position that a masked model predicts; on a causal model, optional and last
    [CLS] [SEP] [BOS]  special tokens of the backbone; with any of them, none is added around the template
    anything else    words

A space between two pieces belongs to the piece on its right; line breaks and further spaces are words. Space around
the whole template is removed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from ptexport.runtime.bundle.manifest import TextField
from ptexport.runtime.errors import TemplateError

Kind = Literal["prompt", "text", "text_b", "mask", "cls", "sep", "bos", "words"]

_PLACEHOLDERS: dict[str, Kind] = {
    "[P]": "prompt",
    "{text}": "text",
    "{text_b}": "text_b",
    "{choice}": "text_b",
    "[MASK]": "mask",
    "[CLS]": "cls",
    "[SEP]": "sep",
    "[BOS]": "bos",
}
_BRACKETED = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}")
_PROMPT = re.compile(r"\[P(?:\*(\d+))?\]")
MAX_PROMPT_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of a template.

    Attributes:
        kind: kind of the piece.
        words: words of a "words" piece; otherwise empty.
        spaced: whether a space precedes the piece; it is not in `words`.
    """

    kind: Kind
    words: str = ""
    spaced: bool = False


class Shot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A labelled row in a few-shot prompt: its text or texts, and its label word (`answer`)."""

    text: str
    text_b: str | None
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A parsed template: exactly one {text}, at most one {text_b} or {choice}, and one [MASK].

    Attributes:
        source: as the user wrote it.
        pieces: in order, one piece per virtual token.
    """

    source: str
    pieces: tuple[Piece, ...]

    @classmethod
    def parse(cls, source: str) -> "Template":
        """Parse a template.

        Raises:
            TemplateError: an unknown placeholder, one too many or missing, or a letter that touches a text.
        """
        pieces: list[Piece] = []
        source = source.strip()
        end = 0
        for match in _BRACKETED.finditer(source):
            _add_words(pieces, source, end, match.start())
            _add_placeholder(pieces, source, match)
            end = match.end()
        _add_words(pieces, source, end, len(source))
        template = cls(source=source, pieces=tuple(pieces))
        _check(template)
        return template

    @property
    def n_prompt(self) -> int:
        """Number of virtual tokens."""
        return sum(piece.kind == "prompt" for piece in self.pieces)

    @property
    def fields(self) -> list[TextField]:
        """Names of the texts that the template takes."""
        if not self.has("text_b"):
            return ["text"]
        return ["text", "choice" if "{choice}" in self.source else "text_b"]

    @property
    def answer_spaced(self) -> bool:
        """Whether a space precedes the label word: yes, unless [MASK] directly follows other characters."""
        return all(piece.spaced for piece in self.pieces if piece.kind == "mask")

    def with_shots(self, shots: Sequence[Shot]) -> "Template":
        """Put labelled rows before the template: each fills in the template, with its label word and an empty line.

        Their text becomes words, even if it contains placeholders; `source` stays unchanged.
        """
        pieces: list[Piece] = []
        for shot in shots:
            texts = {"text": shot.text.strip(), "text_b": (shot.text_b or "").strip(), "mask": shot.answer}
            for piece in self.pieces:
                words = texts.get(piece.kind, piece.words)
                if words:
                    pieces.append(Piece(kind="words", words=words, spaced=piece.spaced))
            if not self.has("mask"):
                pieces.append(Piece(kind="words", words=shot.answer, spaced=True))
            pieces.append(Piece(kind="words", words="\n\n"))
        return replace(self, pieces=(*pieces, *self.pieces))

    def has(self, *kinds: Kind) -> bool:
        """Return whether any piece has one of these kinds."""
        return any(piece.kind in kinds for piece in self.pieces)


def _add_words(pieces: list[Piece], source: str, start: int, end: int) -> None:
    words = source[start:end]
    stray = re.search(r"[\[\]{}]", words)
    if stray:
        raise TemplateError(f"template {source!r}: has a lone {stray[0]!r}; use brackets for placeholders only")
    if end < len(source):
        words = words.removesuffix(" ")  # it belongs to the placeholder
    if words:
        pieces.append(Piece(kind="words", words=words.removeprefix(" "), spaced=words.startswith(" ")))


def _add_placeholder(pieces: list[Piece], source: str, match: re.Match[str]) -> None:
    spaced = bool(pieces) and source[match.start() - 1] == " "
    prompt = _PROMPT.fullmatch(match[0])
    kind = "prompt" if prompt else _PLACEHOLDERS.get(match[0])
    if kind is None:
        known = ", ".join([*_PLACEHOLDERS, "[P*n]"])
        raise TemplateError(f"template {source!r}: unknown placeholder {match[0]!r}; use {known}")
    count = int(prompt[1] or 1) if prompt else 1
    if not 1 <= count <= MAX_PROMPT_TOKENS:
        raise TemplateError(f"template {source!r}: {match[0]}: need 1 to {MAX_PROMPT_TOKENS} virtual tokens")
    pieces.append(Piece(kind=kind, spaced=spaced))
    pieces.extend([Piece(kind=kind)] * (count - 1))


def _check(template: Template) -> None:
    where = f"template {template.source!r}"
    kinds = [piece.kind for piece in template.pieces]
    if kinds.count("text") != 1:
        raise TemplateError(
            f"{where}: has {kinds.count('text')} {{text}}, needs exactly 1; put {{text}} where the text goes"
        )
    for count, name in ((kinds.count("text_b"), "{text_b} or {choice}"), (kinds.count("mask"), "[MASK]")):
        if count > 1:
            raise TemplateError(f"{where}: has {count} {name}, needs at most 1; keep one")
    if template.has("text_b") and kinds.index("text_b") < kinds.index("text"):
        raise TemplateError(f"{where}: {{{template.fields[1]}}} precedes {{text}}; name the first text {{text}}")
    if template.n_prompt > MAX_PROMPT_TOKENS:
        raise TemplateError(
            f"{where}: has {template.n_prompt} virtual tokens, needs at most {MAX_PROMPT_TOKENS}; use fewer"
        )
    touching = re.search(r"\w\{(text|text_b|choice)\}|\{(text|text_b|choice)\}\w", template.source)
    if touching:
        raise TemplateError(f"{where}: a letter touches a text in {touching[0]!r}; put a space between them")
