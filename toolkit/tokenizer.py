"""A template's pieces + a backbone's tokenizer -> ids, and one tokenizer.json that makes them; without torch.

The compiled tokenizer is the only one: it serves training, hand-written templates, export and serving. The template
becomes its `TemplateProcessing` post-processor; virtual token k is a vocabulary entry named `[P k]` at id
`vocab + k`, which no text can spell, since no pre-tokenizer keeps a space inside a word.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from ptexport.runtime.errors import ModelError, TemplateError
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.template import Piece, Template

Truncate = Literal["longest", "text"]
"""Which text of a pair is cut when both do not fit: the longer one, or always {text}."""

_STRATEGY: dict[Truncate, str] = {"longest": "LongestFirst", "text": "OnlyFirst"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateToken:
    """One token of the template: its id, its name in the vocabulary and its token type (0 or 1)."""

    id: int
    name: str
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSlot:
    """Where a text goes: "A" for {text}, "B" for {text_b}."""

    sequence: Literal["A", "B"]
    type_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTemplate:
    """A template on one backbone.

    Attributes:
        items: template tokens and text slots, in order, with what surrounds them.
        n_rows: rows that template ids past the vocabulary point to: virtual tokens, then the mask slot if there is one.
        max_length: most tokens in one row.
        text_spaced: whether a space stands before the texts and belongs to their first token.
        vocab: the first id past the backbone's embedding table.
        base: the backbone's tokenizer, as JSON.
        truncate: which text of a pair is cut.
    """

    items: tuple[TemplateToken | TextSlot, ...]
    n_rows: int
    max_length: int
    text_spaced: bool
    vocab: int
    base: str
    truncate: Truncate

    @property
    def fields(self) -> list[str]:
        """The texts a row must bring."""
        slots = {item.sequence for item in self.items if isinstance(item, TextSlot)}
        return ["text", "text_b"] if "B" in slots else ["text"]

    @property
    def leading_ids(self) -> list[int]:
        """Ids of the template tokens before the first text that can be folded.

        One token always stays, so that an empty text leaves the graph something to read.
        """
        first_text = next(i for i, item in enumerate(self.items) if isinstance(item, TextSlot))
        leading = [item.id for item in self.items[:first_text] if isinstance(item, TemplateToken)]
        only_texts_follow = all(isinstance(item, TextSlot) for item in self.items[first_text:])
        return leading[:-1] if only_texts_follow else leading

    def tokenizer_json(self, *, n_folded: int = 0) -> str:
        """Write the tokenizer that makes this template's ids, truncating to `max_length`.

        Args:
            n_folded: leading template tokens to leave out, since the graph holds them as keys and values.
        """
        items = self.items[n_folded:]
        spec = json.loads(self.base)
        tokens = {item.name: item.id for item in items if isinstance(item, TemplateToken)}
        _add_to_vocab(spec["model"], {name: id_ for name, id_ in tokens.items() if id_ >= self.vocab})
        spec["normalizer"] = _text_normalizer(spec.get("normalizer"), spaced=self.text_spaced)
        spec["padding"] = None
        spec["truncation"] = {
            "direction": "Right",
            "max_length": self.max_length - n_folded,
            "strategy": _STRATEGY[self.truncate],
            "stride": 0,
        }
        pair = any(isinstance(item, TextSlot) and item.sequence == "B" for item in items)
        layout = [_post_processor_item(item) for item in items]
        alone = [{"Sequence": {"id": "A", "type_id": 0}}]
        # The layout a bundle does not use is the plain one: the engine refuses such rows before they get here.
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
    truncate: Truncate = "longest",
) -> CompiledTemplate:
    """Compile a template for a backbone.

    Args:
        template: the parsed template.
        facts: of the backbone.
        tokenizer_json: the backbone's own tokenizer.
        mask_slot: whether the state is read at [MASK] (label words on a masked model).
        max_length: most tokens in one row; at most the backbone's.
        truncate: which text of a pair is cut.

    Raises:
        TemplateError: the template does not fit this backbone, or leaves no room for text.
        ModelError: the tokenizer does not split text at spaces in a way the rules cover.
    """
    _check_mask(template, facts, mask_slot=mask_slot)
    words = WordTokenizer(tokenizer_json)
    _check_unspellable(words, facts)
    spaced = words.space_matters and any(p.spaced for p in template.pieces if p.kind in ("text", "text_b"))
    items = _items(template, facts, words)
    n_fixed = sum(isinstance(item, TemplateToken) for item in items)
    where = f"template {template.source!r}"
    if n_fixed == 0:
        raise TemplateError(
            f"{where}: holds nothing beside texts, and an empty text would leave nothing to read; add a word"
        )
    if max_length > facts.max_positions:
        raise TemplateError(f"max length {max_length}: {facts.name} takes at most {facts.max_positions} tokens")
    if n_fixed + len(template.fields) > max_length:
        raise TemplateError(
            f"{where}: takes {n_fixed} of {max_length} tokens, leaving none for text; raise the max length"
        )
    compiled = CompiledTemplate(
        items=items,
        n_rows=template.n_prompt + (1 if mask_slot else 0),
        max_length=max_length,
        text_spaced=spaced,
        vocab=facts.vocab,
        base=tokenizer_json,
        truncate=truncate,
    )
    return compiled


class WordTokenizer:
    """A backbone's tokenizer for pieces of a template and label words, tokenised apart.

    Attributes:
        space_matters: whether a space before a word is part of its token (byte-level BPE) or not (WordPiece,
            SentencePiece, which mark or ignore it themselves).
    """

    def __init__(self, tokenizer_json: str) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        whole, first, second = self._ids("a b"), self._ids("a"), self._ids("b")
        self.space_matters = whole != first + second
        if self.space_matters and whole != first + self._ids(" b"):
            raise ModelError("the tokenizer splits neither 'a|b' nor 'a| b' as it splits 'a b'; not supported")

    def ids(self, words: str, *, spaced: bool) -> list[int]:
        """Tokenise words by themselves, with the space before them where it belongs to their first token."""
        return self._ids(f" {words}" if spaced and self.space_matters else words)

    def name(self, id_: int) -> str:
        """A token's name in the vocabulary."""
        name = self.tokenizer.id_to_token(id_)
        assert name is not None, id_  # only asked of ids that this tokenizer made
        return name

    def id(self, name: str) -> int:
        """The id of a token that is in the vocabulary."""
        id_ = self.tokenizer.token_to_id(name)
        if id_ is None:
            raise ModelError(
                f"the tokenizer calls {name!r} one of its special tokens, but has no id for it; not supported"
            )
        return id_

    def surrounding(self) -> tuple[list[int], list[int]]:
        """What the backbone's own post-processor puts before and after one text."""
        encoding = self.tokenizer.encode("a")
        inner = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: inner[0]], encoding.ids[inner[-1] + 1 :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _check_mask(template: Template, facts: BackboneFacts, *, mask_slot: bool) -> None:
    where = f"template {template.source!r}"
    if mask_slot and not template.has("mask"):
        raise TemplateError(
            f"{where}: has no [MASK], and {facts.name} is a masked model that answers there; add [MASK]"
        )
    if template.has("mask") and facts.causal and template.pieces[-1].kind != "mask":
        raise TemplateError(f"{where}: {facts.name} is causal and answers at the end; put [MASK] last, or leave it out")
    if template.has("mask") and not facts.causal and not mask_slot:
        raise TemplateError(f"{where}: a linear head does not read [MASK]; leave it out")


def _items(template: Template, facts: BackboneFacts, words: WordTokenizer) -> tuple[TemplateToken | TextSlot, ...]:
    written = template.has("cls", "sep", "bos")
    before, after = ([], []) if written else words.surrounding()
    items: list[TemplateToken | TextSlot] = [TemplateToken(id=i, name=words.name(i), type_id=0) for i in before]
    type_id = prompt = 0
    texts_begun = False
    for piece in template.pieces:
        if piece.kind in ("text", "text_b"):
            items.append(TextSlot(sequence="A" if piece.kind == "text" else "B", type_id=type_id))
            texts_begun = True
        elif piece.kind == "prompt" or (piece.kind == "mask" and not facts.causal):
            row = prompt if piece.kind == "prompt" else template.n_prompt
            items.append(TemplateToken(id=facts.vocab + row, name=f"[P {row}]", type_id=type_id))
            prompt += piece.kind == "prompt"
        elif piece.kind != "mask":  # on a causal model [MASK] adds no token
            items += [
                TemplateToken(id=i, name=words.name(i), type_id=type_id) for i in _literal_ids(piece, facts, words)
            ]
        if piece.kind == "sep" and texts_begun and template.has("text_b") and facts.token_types:
            type_id = 1
    items += [TemplateToken(id=i, name=words.name(i), type_id=type_id) for i in after]
    return tuple(items)


def _literal_ids(piece: Piece, facts: BackboneFacts, words: WordTokenizer) -> list[int]:
    if piece.kind == "words":
        return words.ids(piece.words, spaced=piece.spaced)
    token = facts.tokens.get(piece.kind)
    if token is None:
        raise TemplateError(
            f"template: [{piece.kind.upper()}] is written, but {facts.name} has no such token; leave it out"
        )
    return [words.id(token)]


def _add_to_vocab(model: dict[str, Any], tokens: dict[str, int]) -> None:
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab.update(tokens)
        return
    # A Unigram vocabulary is a list whose index is the id: fill up to the embedding table's rows first.
    for name, id_ in sorted(tokens.items(), key=lambda item: item[1]):
        vocab += [[f"[unused {filler}]", -1e9] for filler in range(len(vocab), id_)]
        vocab.append([name, -1e9])


def _text_normalizer(existing: dict[str, Any] | None, *, spaced: bool) -> dict[str, Any]:
    """Strip the text and put back the space that the template has before it, then do what the backbone does."""
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


def _check_unspellable(words: WordTokenizer, facts: BackboneFacts) -> None:
    """Refuse a tokenizer that could take `[P 0]` for one word, since text could then name a virtual token."""
    name = "[P 0]"
    normalizer, splitter = words.tokenizer.normalizer, words.tokenizer.pre_tokenizer
    text = name if normalizer is None else normalizer.normalize_str(name)
    pieces = [text] if splitter is None else [piece for piece, _ in splitter.pre_tokenize_str(text)]
    if any(name in piece for piece in pieces):
        raise ModelError(
            f"{facts.name}: its tokenizer keeps spaces inside words, so text could spell {name}; not supported"
        )
