"""Labels -> label words -> token ids.

A verbalizer (Schick and Schütze 2021, arXiv:2001.07676, section 3) uses the logit of a word as the logit of a label.
With several words per label, their rows of the language-model head are averaged, so that a label stays one row.
"""

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ptexport.runtime.errors import VerbalizerError
from ptexport.toolkit.template.words import WordTokenizer

_MOST_SIMILAR = 5  # words in a message

OPEN_VOCABULARY = "vocab"
"""Value of `--labels` that makes every word of the vocabulary a label, as in LAMA (Petroni et al. 2019)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbalizer:
    """Labels in the order of the logits.

    Attributes:
        labels: at least two different names; empty with `open_vocabulary` until `filled`.
        words: words per label, each a single token; none for a label until `filled`; None for a linear head.
        open_vocabulary: whether every word of the vocabulary is a label with the same name.
    """

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...] | None
    open_vocabulary: bool = False

    @classmethod
    def parse(cls, spec: str, *, linear: bool) -> "Verbalizer":
        """Parse labels.

        Args:
            spec: `name=word|word,name=word`, or the path of a file with one `name=word|word` per line; for a linear
                head, names alone, and otherwise where the name is the word. `vocab`: every word that is one token; see
                `filled`.
            linear: whether the head is linear.

        Raises:
            VerbalizerError: there are fewer than two labels, a label is repeated, has no word after =, or has
                words for a linear head.
        """
        if spec == OPEN_VOCABULARY:
            if linear:
                raise VerbalizerError(
                    f"labels {OPEN_VOCABULARY}: needs label words, and a linear head has none; give names, or use "
                    "--head words"
                )
            return cls(labels=(), words=(), open_vocabulary=True)
        try:
            # os.path.isfile, since Path.is_file fails if labels are too long for a file name
            file = Path(spec).read_text(encoding="utf-8-sig") if os.path.isfile(spec) else None  # noqa: PTH113
            entries = spec.split(",") if file is None else file.splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise VerbalizerError(f"labels {spec!r}: cannot be read ({e}); check the file") from e
        pairs = [entry.partition("=") for entry in entries if entry.strip()]
        labels = tuple(name.strip() for name, _, _ in pairs)
        words = tuple(tuple(word.strip() for word in words.split("|") if word.strip()) for _, _, words in pairs)
        where = f"labels {spec!r}"
        if len(labels) == 1 and not words[0] and Path(spec).suffix:
            raise VerbalizerError(f"{where}: no such file; check the path, or write name=word,name=word")
        if len(labels) < 2 or len(set(labels)) < len(labels) or "" in labels:
            raise VerbalizerError(f"{where}: got {list(labels)}, need two or more different names separated by commas")
        for label, has, (_, equals, _) in zip(labels, words, pairs, strict=True):
            if equals and not has:
                raise VerbalizerError(f"{where}: {label!r} has no word; write {label}=WORD, or {label} alone")
        return cls(labels=labels, words=words).with_head(linear=linear)

    def with_head(self, *, linear: bool, drop_words: bool = False) -> "Verbalizer":
        """Return the labels for a head; a label without words gets one when it is `filled`.

        Args:
            linear: whether the head is linear.
            drop_words: whether a linear head may ignore words.

        Raises:
            VerbalizerError: a label has words, and the head is linear.
        """
        if not linear:
            return replace(self, words=((),) * len(self.labels)) if self.words is None else self
        for label, has in zip(self.labels, self.words or (), strict=False):
            if has and not drop_words:
                raise VerbalizerError(
                    f"label {label!r}: has words, and a linear head uses none; give names alone, or rename the "
                    "values of the column with --label-names"
                )
        return replace(self, words=None)

    def filled(self, tokenizer: WordTokenizer, *, spaced: bool) -> "Verbalizer":
        """Fill in what depends on the tokenizer.

        With `open_vocabulary`, every word that is one token becomes a label. A label without words gets its name as
        its word: as it is, or in lower case, if only that is one token.

        Args:
            tokenizer: tokenizer of the backbone.
            spaced: see `word_ids`.
        """
        if self.open_vocabulary:
            labels = tuple(tokenizer.single_words(spaced=spaced))
            return replace(self, labels=labels, words=tuple((label,) for label in labels))
        if self.words is None:
            return self
        words = [
            given or (tokenizer.single_word(label, spaced=spaced) or label,)
            for label, given in zip(self.labels, self.words, strict=True)
        ]
        return replace(self, words=tuple(words))

    @property
    def spec(self) -> str | None:
        """The labels as `parse` takes them; None: a name holds one of its separators."""
        if self.open_vocabulary:
            return OPEN_VOCABULARY
        entries = [
            (label, *words) for label, words in zip(self.labels, self.words or [()] * len(self.labels), strict=True)
        ]
        if any(set(",=|\n") & set(text) or text != text.strip() for entry in entries for text in entry):
            return None
        return ",".join(f"{label}={'|'.join(words)}" if words else label for label, *words in entries)

    def word_ids(self, tokenizer: WordTokenizer, *, spaced: bool, unknown: str | None) -> list[list[int]]:
        """Return the token ids of the words of each label.

        Args:
            tokenizer: tokenizer of the backbone.
            spaced: whether a space precedes the label word; see `Template.answer_spaced`.
            unknown: unknown token of the backbone, which is not a valid label word.

        Raises:
            VerbalizerError: a word is not one token (the message suggests similar words), or two labels share a word.
        """
        ids: list[list[int]] = []
        owner: dict[int, str] = {}
        for label, words in zip(self.labels, self.words or (), strict=True):
            ids.append([])
            for word in words:
                tokens = tokenizer.ids(word, spaced=spaced)
                if len(tokens) != 1 or tokenizer.name(tokens[0]) == unknown:
                    raise VerbalizerError(_not_one_token(label, word, tokens, tokenizer, spaced=spaced))
                if owner.setdefault(tokens[0], label) != label:
                    raise VerbalizerError(
                        f"label word {word!r}: both {owner[tokens[0]]!r} and {label!r} use it; choose different words"
                    )
                ids[-1].append(tokens[0])
        return ids


def _not_one_token(label: str, word: str, tokens: list[int], tokenizer: WordTokenizer, *, spaced: bool) -> str:
    vocabulary = {tokenizer.tokenizer.decode([i]).strip(): i for i in tokenizer.tokenizer.get_vocab().values()}
    pieces = [tokenizer.tokenizer.decode([i]).strip() for i in tokens]
    close = [
        near
        for near in [*pieces, *difflib.get_close_matches(word, vocabulary, n=10, cutoff=0.6)]
        if len(near) > 1 and near.isalpha() and len(tokenizer.ids(near, spaced=spaced)) == 1
    ]
    advice = (
        f"similar single tokens: {', '.join([*dict.fromkeys(close)][:_MOST_SIMILAR])}"
        if close
        else "choose a more common word"
    )
    got = f"{len(tokens)} tokens ({' + '.join(map(tokenizer.name, tokens))})"
    return f"label {label!r}: its word {word!r} is {got} here, need 1; {advice}, or use --head linear"
