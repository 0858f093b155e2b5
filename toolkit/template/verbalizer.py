"""Labels and their words -> token ids; knows the vocabulary, nothing of models.

A verbalizer (Schick and Schütze 2021, arXiv:2001.07676, section 3) reads a label off the language model's head as
the score of a word. Several words per label are averaged as rows of the head, so a label stays one row.
"""

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ptexport.runtime.errors import VerbalizerError
from ptexport.toolkit.template.words import WordTokenizer

OPEN_VOCABULARY = "vocab"
"""What stands for labels where every word of the vocabulary is one, as in LAMA (Petroni et al. 2019)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbalizer:
    """Labels in the order of the logits.

    Attributes:
        labels: names, at least two, all different; none yet where they are open and no vocabulary is known.
        words: words per label, each a single token; None: a linear head, which has no words.
        open_vocabulary: whether every word of the vocabulary is a label, of its own name.
    """

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...] | None
    open_vocabulary: bool = False

    @classmethod
    def parse(cls, spec: str, *, linear: bool) -> "Verbalizer":
        """Parse labels.

        Args:
            spec: `name=word|word,name=word`, or the path of a file with one `name=word|word` a line. For a linear
                head names alone. `vocab`: every word that is one token; see `filled`.
            linear: whether the head is linear.

        Raises:
            VerbalizerError: fewer than two labels, one named twice, one without words (or, on a linear head, with).
        """
        if spec == OPEN_VOCABULARY:
            if linear:
                raise VerbalizerError(
                    f"labels {OPEN_VOCABULARY}: needs words, a linear head has none; name labels, or use --head words"
                )
            return cls(labels=(), words=(), open_vocabulary=True)
        try:
            # os.path.isfile, since Path's refuses a long line of labels as a name
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
        for label, has in zip(labels, words, strict=True):
            if linear and has:
                raise VerbalizerError(f"{where}: {label!r} has words, but a linear head reads none; give names alone")
            if not linear and not has:
                raise VerbalizerError(
                    f"{where}: {label!r} has no word; write {label}=WORD; names alone are for a linear head"
                )
        return cls(labels=labels, words=None if linear else words)

    def filled(self, tokenizer: WordTokenizer, *, spaced: bool) -> "Verbalizer":
        """Put in the vocabulary's words where labels are open: every word that is one token and no other name's.

        Args:
            tokenizer: the backbone's.
            spaced: as for `word_ids`.
        """
        if not self.open_vocabulary:
            return self
        labels = tuple(tokenizer.single_words(spaced=spaced))
        return replace(self, labels=labels, words=tuple((label,) for label in labels))

    def word_ids(self, tokenizer: WordTokenizer, *, spaced: bool, unknown: str | None) -> list[list[int]]:
        """Look up each label's words in the vocabulary.

        Args:
            tokenizer: the backbone's.
            spaced: whether a space stands before the answer, as it does unless the template glues [MASK] to words.
            unknown: the backbone's unknown token, which no label word may be.

        Raises:
            VerbalizerError: a word is not one token (says which come close), or two labels share one.
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
    advice = f"single tokens that come close: {', '.join(dict.fromkeys(close))}" if close else "choose a commoner word"
    got = f"{len(tokens)} tokens ({' + '.join(map(tokenizer.name, tokens))})"
    return f"label {label!r}: its word {word!r} is {got} here, need 1; {advice}"
