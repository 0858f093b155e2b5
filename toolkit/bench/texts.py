"""Texts that a bench makes itself: of as many tokens as it asks for, and other ones each time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import TOKENIZER, Bundle
from ptexport.runtime.errors import BenchError

N_WORDS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTexts:
    """What texts for a bundle are made of.

    Attributes:
        words: one token each.
        n_fixed: tokens of a row that are not the text's.
        longest: most tokens of a text that is not truncated; at least 1.
    """

    words: list[str]
    n_fixed: int
    longest: int

    @classmethod
    def of(cls, bundle: Bundle) -> "PlainTexts":
        """Choose words for a bundle.

        Raises:
            BenchError: it takes more than one text, or its tokenizer has no such words.
        """
        manifest = bundle.manifest
        if manifest.fields != ["text"]:
            raise BenchError(
                f"{bundle.path}: takes {' and '.join(manifest.fields)}, need one text, which is made here; give "
                "another bundle, or measure this one with bench quality on rows of your own"
            )
        tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
        n_fixed = len(tokenizer.encode(""))
        return cls(words=plain_words(tokenizer), n_fixed=n_fixed, longest=manifest.max_length - n_fixed)

    def make(self, batch: int, tokens: int, seed: str) -> list[str]:
        """Make texts of so many tokens, other ones for each seed."""
        return make_texts(self.words, batch, tokens, seed)


def plain_words(tokenizer: Tokenizer) -> list[str]:
    """Choose words that are one token each wherever they stand in a text, so that a text has as many as it shall.

    Raises:
        BenchError: there are none.
    """
    names = (token.replace("Ġ", "") for token in sorted(tokenizer.get_vocab()))
    words = sorted({name for name in names if name.isascii() and name.isalpha() and name.islower() and len(name) > 3})
    encoded = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
    chosen = [word for word, encoding in zip(words, encoded, strict=True) if len(encoding) == 2]
    if not chosen:
        raise BenchError("tokenizer: has no words of one token each, of which texts are made here; not supported")
    return chosen[:N_WORDS]


def make_texts(words: Sequence[str], batch: int, tokens: int, seed: str) -> list[str]:
    """Make texts of so many tokens, other ones for each seed."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(words, k=tokens)) for _ in range(batch)]
