"""Template pieces + tokenizer of the backbone -> one tokenizer.json whose ids contain the template. Without torch.

Training, hand-written templates, export and serving use the same compiled tokenizer. The template becomes its
`TemplateProcessing` post-processor; virtual token k is a vocabulary entry named `[P k]` at id `vocab + k`. No text can
produce that id, since no pre-tokenizer keeps a space inside a word.
"""

import copy
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ptexport.runtime.errors import ModelError, TemplateError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.template.template import Piece, Template
from ptexport.toolkit.template.words import WordTokenizer

Truncate = Literal["longest", "text"]
"""Which text of a pair is truncated if both do not fit: the longer one, or always {text}."""

_STRATEGY: dict[Truncate, str] = {"longest": "LongestFirst", "text": "OnlyFirst"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateToken:
    """One token of the template: id, name in the vocabulary and token type (0 or 1)."""

    id: int
    name: str
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSlot:
    """The place of a text: "A" for {text}, "B" for {text_b}."""

    sequence: Literal["A", "B"]
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTemplate:
    """A template, compiled for one backbone.

    Attributes:
        items: template tokens, text slots and the special tokens around them, in order.
        max_length: maximum tokens per row, including the prefix.
        n_prefix: positions of keys and values before the row; they have no ids.
        text_spaced: whether a space before the texts is part of their first token.
        vocab: the first id past the embedding table of the backbone.
        base: tokenizer of the backbone, as JSON.
        added_ids: ids of the tokens that `base` adds to the vocabulary of its model, by name.
        truncate: which text of a pair is truncated.
    """

    items: tuple[TemplateToken | TextSlot, ...]
    max_length: int
    n_prefix: int
    text_spaced: bool
    vocab: int
    base: str
    added_ids: dict[str, int]
    truncate: Truncate

    @property
    def fields(self) -> list[str]:
        """Names of the texts that the template takes."""
        slots = {item.sequence for item in self.items if isinstance(item, TextSlot)}
        return ["text", "text_b"] if "B" in slots else ["text"]

    @property
    def has_prompt_embeddings(self) -> bool:
        """Whether any token has an embedding past the vocabulary."""
        return any(isinstance(item, TemplateToken) and item.id >= self.vocab for item in self.items)

    @property
    def n_fixed(self) -> int:
        """Number of template tokens in every row, without the texts."""
        return sum(isinstance(item, TemplateToken) for item in self.items)

    @property
    def leading_ids(self) -> list[int]:
        """Ids of the template tokens before the first text, which can be folded.

        At least one template token is not folded, so that a row with an empty text has a token.
        """
        first_text = next(i for i, item in enumerate(self.items) if isinstance(item, TextSlot))
        leading = [item.id for item in self.items[:first_text] if isinstance(item, TemplateToken)]
        only_texts_follow = all(isinstance(item, TextSlot) for item in self.items[first_text:])
        return leading[:-1] if only_texts_follow else leading

    def tokenizer_json(self, *, n_folded: int = 0) -> str:
        """Return a tokenizer that adds this template and truncates to `max_length`, as JSON.

        Args:
            n_folded: leading template tokens to leave out, since the graph contains their keys and values.
        """
        items = self.items[n_folded:]
        spec = json.loads(self.base)
        tokens = {item.name: item.id for item in items if isinstance(item, TemplateToken)}
        # Ids of added tokens start at the size of the model's vocabulary, which the entries of virtual tokens change.
        # Therefore added tokens go into the vocabulary too, with the ids they had.
        prompt = {name: id_ for name, id_ in tokens.items() if id_ >= self.vocab}
        add_to_vocab(spec["model"], self.added_ids | prompt)
        spec["normalizer"] = _text_normalizer(spec.get("normalizer"), spaced=self.text_spaced)
        spec["padding"] = None
        spec["truncation"] = {
            "direction": "Right",
            "max_length": self.max_length - self.n_prefix - n_folded,
            "strategy": _STRATEGY[self.truncate],
            "stride": 0,
        }
        pair = any(isinstance(item, TextSlot) and item.sequence == "B" for item in items)
        layout = [_post_processor_item(item) for item in items]
        alone = [{"Sequence": {"id": "A", "type_id": 0}}]
        # The layout that the template does not use is the plain one; the engine rejects such rows earlier.
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": alone if pair else layout,
            "pair": layout if pair else [*alone, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in tokens.items()},
        }
        return json.dumps(spec, ensure_ascii=False)


def compile_template(
    template: Template,
    facts: BackboneFacts,
    tokenizer_json: str,
    *,
    mask_slot: bool,
    max_length: int,
    n_prefix: int = 0,
    truncate: Truncate = "longest",
) -> CompiledTemplate:
    """Compile a template for a backbone.

    Args:
        template: the parsed template.
        facts: facts about the backbone.
        tokenizer_json: tokenizer of the backbone.
        mask_slot: whether logits come from the hidden state at [MASK] (label words on a masked model).
        max_length: maximum tokens per row; at most that of the backbone.
        n_prefix: number of virtual tokens that are keys and values instead of embeddings: all of them, or 0.
        truncate: which text of a pair is truncated.

    Raises:
        TemplateError: the template does not fit this backbone, or leaves no room for text.
        ModelError: the tokenizer splits text at spaces in an unsupported way.
    """
    _check_mask(template, facts, mask_slot=mask_slot)
    words = WordTokenizer(tokenizer_json)
    words.check_unspellable(facts.name, facts.vocab)
    text_spaced = _is_text_spaced(template, facts, words)
    if max_length > facts.max_positions:
        raise TemplateError(f"max length {max_length}: {facts.name} takes at most {facts.max_positions} tokens")
    if n_prefix:
        template = replace(template, pieces=tuple(piece for piece in template.pieces if piece.kind != "prompt"))
    compiled = CompiledTemplate(
        items=_items(template, facts, words),
        max_length=max_length,
        n_prefix=n_prefix,
        text_spaced=text_spaced,
        vocab=facts.vocab,
        base=tokenizer_json,
        added_ids=words.added_ids(),
        truncate=truncate,
    )
    _check_room(template, compiled)
    return compiled


def _check_room(template: Template, compiled: CompiledTemplate) -> None:
    """Raise TemplateError if there is no room for text."""
    n_taken = compiled.n_prefix + compiled.n_fixed
    if n_taken + len(template.fields) > compiled.max_length:
        raise TemplateError(
            f"template {template.source!r}: takes {n_taken} of {compiled.max_length} tokens, leaving none for text; "
            "use fewer, or raise --max-length"
        )


def _is_text_spaced(template: Template, facts: BackboneFacts, words: WordTokenizer) -> bool:
    """Return whether a space before the texts is part of their first token.

    Raises:
        TemplateError: the texts differ in that.
    """
    spaced = {piece.spaced for piece in template.pieces if piece.kind in ("text", "text_b")}
    if words.space_matters and len(spaced) > 1:
        raise TemplateError(
            f"template {template.source!r}: has a space before one text and none before the other, and the tokens of "
            f"{facts.name} include the space; start with a word or [P] and a space, or precede both texts alike"
        )
    return words.space_matters and True in spaced


def count_split_differently(template: Template, tokenizer_json: str, rows: Iterable[Row]) -> int:
    """Count rows that would have other ids if template and texts were tokenised as one string.

    Pieces are tokenised separately. With spaces between them the ids are equal; a character next to a text, as "?" in
    "{text}?", may become one token with the end of the text.

    Args:
        template: the parsed template.
        tokenizer_json: tokenizer of the backbone.
        rows: rows with the texts that the template takes.
    """
    words = WordTokenizer(tokenizer_json)
    runs = [list(run) for textual, run in itertools.groupby(template.pieces, key=_is_textual) if textual]
    joined = [run for run in runs if not all(piece.spaced for piece in run[1:])]

    def differs(run: list[Piece], row: Row) -> bool:
        texts = {"text": row.text, "text_b": row.text_b or ""}
        parts = [(texts[piece.kind].strip() if piece.kind in texts else piece.words, piece.spaced) for piece in run]
        whole = "".join(f" {part}" if spaced and part else part for part, spaced in parts)
        separate = [id_ for part, spaced in parts if part for id_ in words.ids(part, spaced=spaced)]
        return words.ids(whole, spaced=False) != separate

    return sum(any(differs(run, row) for run in joined) for row in rows)


def _is_textual(piece: Piece) -> bool:
    return piece.kind in ("words", "text", "text_b")


def _check_mask(template: Template, facts: BackboneFacts, *, mask_slot: bool) -> None:
    where = f"template {template.source!r}"
    if mask_slot and "mask" not in facts.tokens:
        raise ModelError(f"{facts.name}: a masked model without a mask token in its tokenizer; use --head linear")
    if mask_slot and not template.has("mask"):
        raise TemplateError(f"{where}: has no [MASK], and the masked model {facts.name} predicts there; add [MASK]")
    if template.has("mask") and facts.causal and template.pieces[-1].kind != "mask":
        raise TemplateError(
            f"{where}: the causal model {facts.name} predicts after the last token; put [MASK] last, or leave it out"
        )
    if template.has("mask") and not facts.causal and not mask_slot:
        raise TemplateError(f"{where}: a linear head does not use [MASK]; leave it out")


def _items(template: Template, facts: BackboneFacts, words: WordTokenizer) -> tuple[TemplateToken | TextSlot, ...]:
    written = template.has("cls", "sep", "bos")
    before, after = ([], []) if written else words.surrounding()
    items: list[TemplateToken | TextSlot] = [TemplateToken(id=i, name=words.name(i), type_id=0) for i in before]
    type_id = prompt = 0
    between_texts = False
    for piece in template.pieces:
        if piece.kind in ("text", "text_b"):
            items.append(TextSlot(sequence="A" if piece.kind == "text" else "B", type_id=type_id))
            between_texts = piece.kind == "text" and template.has("text_b")
        elif piece.kind == "prompt" or (piece.kind == "mask" and not facts.causal):
            row = prompt if piece.kind == "prompt" else template.n_prompt
            items.append(TemplateToken(id=facts.vocab + row, name=f"[P {row}]", type_id=type_id))
            prompt += piece.kind == "prompt"
        elif piece.kind != "mask":  # on a causal model [MASK] adds no token
            items += [
                TemplateToken(id=i, name=words.name(i), type_id=type_id) for i in _literal_ids(piece, facts, words)
            ]
        if piece.kind == "sep" and between_texts and facts.token_types:
            type_id = 1
    items += [TemplateToken(id=i, name=words.name(i), type_id=type_id) for i in after]
    return tuple(items)


def _literal_ids(piece: Piece, facts: BackboneFacts, words: WordTokenizer) -> list[int]:
    if piece.kind == "words":
        return words.ids(piece.words, spaced=piece.spaced)
    token = facts.tokens.get(piece.kind)
    if token is None:
        raise TemplateError(f"template: has [{piece.kind.upper()}], and {facts.name} has no such token; leave it out")
    return [words.id(token)]


def add_to_vocab(model: dict[str, Any], tokens: dict[str, int]) -> None:
    """Add tokens with ids past the last one to the `model` of a tokenizer."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab.update(tokens)
        return
    # A Unigram vocabulary is a list, and the index is the id: fill it up to the last id. No text contains a filler; its
    # score is 0.0, since the lowest score determines the cost of unknown characters.
    names = {id_: name for name, id_ in tokens.items()}
    for id_ in range(len(vocab), max(names, default=-1) + 1):
        vocab.append([names.get(id_, f"[unused {id_}]"), 0.0])


def _text_normalizer(existing: dict[str, Any] | None, *, spaced: bool) -> dict[str, Any]:
    """Strip the text, add the space that precedes it in the template, then normalise as the backbone does."""
    steps: list[dict[str, Any]] = [{"type": "Strip", "strip_left": True, "strip_right": True}]
    if spaced:
        steps.append({"type": "Prepend", "prepend": " "})
    if existing is not None:
        steps += existing["normalizers"] if existing["type"] == "Sequence" else [copy.deepcopy(existing)]
    return {"type": "Sequence", "normalizers": steps}


def _post_processor_item(item: TemplateToken | TextSlot) -> dict[str, Any]:
    if isinstance(item, TextSlot):
        return {"Sequence": {"id": item.sequence, "type_id": item.type_id}}
    return {"SpecialToken": {"id": item.name, "type_id": item.type_id}}
