"""A bundle -> synthetic texts: each has the requested number of tokens, and each seed gives other texts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from ptexport.runtime.bundle.folder import TOKENIZER, Bundle
from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.errors import BenchError, BundleError

N_WORDS = 2000


def only_task(bundle: Bundle) -> TaskEntry:
    """Return the only task of a bundle.

    Raises:
        BundleError: the bundle has several tasks.
    """
    tasks = bundle.manifest.tasks
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise BundleError(f"{bundle.path}: has the tasks {names}, need one task; measure a bundle of one of them")
    return tasks[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTexts:
    """A generator of texts for one bundle.

    Attributes:
        words: words of one token each.
        n_fixed: tokens that the template adds to every text.
        longest: tokens of the longest text that is not truncated, at least 1.
    """

    words: list[str]
    n_fixed: int
    longest: int

    @classmethod
    def of(cls, bundle: Bundle) -> "SyntheticTexts":
        """Choose words for a bundle.

        Raises:
            BenchError: the template takes more than one text, or the tokenizer has no suitable words.
            BundleError: the bundle has several tasks.
        """
        task = only_task(bundle)
        if task.fields != ["text"]:
            raise BenchError(
                f"{bundle.path}: its template takes {' and '.join(task.fields)}, need one text; measure another "
                "bundle, or this one with 'ptexport bench quality' on rows of your own"
            )
        tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
        n_fixed = len(tokenizer.encode(""))
        return cls(words=one_token_words(tokenizer), n_fixed=n_fixed, longest=task.max_length - n_fixed)

    def make(self, batch: int, tokens: int, seed: str) -> list[str]:
        """Make `batch` texts of `tokens` tokens each; other texts for each seed."""
        return make_texts(self.words, batch, tokens, seed)


def one_token_words(tokenizer: Tokenizer) -> list[str]:
    """Choose words that are one token at any place in a text, so that a text has one token per word.

    Raises:
        BenchError: the tokenizer has no such words.
    """
    names = (token.replace("Ġ", "") for token in sorted(tokenizer.get_vocab()))
    words = sorted({name for name in names if name.isascii() and name.isalpha() and name.islower() and len(name) > 3})
    encoded = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
    chosen = [word for word, encoding in zip(words, encoded, strict=True) if len(encoding) == 2]
    if not chosen:
        raise BenchError(
            "tokenizer: has no words of one token each, need them for synthetic texts; measure another bundle"
        )
    return chosen[:N_WORDS]


def make_texts(words: Sequence[str], batch: int, tokens: int, seed: str) -> list[str]:
    """Make `batch` texts of `tokens` words each; other texts for each seed."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(words, k=tokens)) for _ in range(batch)]
