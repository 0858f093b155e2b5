"""Texts -> encodings -> padded ids, with the tokenizer of a task.

The template is the post-processor of the tokenizer, so `encode` returns the ids of virtual tokens with all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from ptexport.runtime.errors import BundleError, DataError, reason
from ptexport.runtime.ort.io_binding import Ids

Text = str | tuple[str, str]
"""One text, or the two texts of a pair."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A row of ids that a caller gives instead of a text, with the template's.

    Attributes:
        ids: token ids, without padding.
        type_ids: token types, as many.
        overflowing: as an Encoding has it; ids are never truncated.
    """

    ids: list[int]
    type_ids: list[int]
    overflowing: tuple[()] = ()

    def __len__(self) -> int:
        return len(self.ids)


Tokens = Encoding | TokenIds
"""An encoded text, or ids."""


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Load a tokenizer.

    Raises:
        BundleError: it is not one.
    """
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as e:  # tokenizers raises plain Exception
        raise BundleError(f"tokenizer.json: not a tokenizer ({reason(e)}); export the bundle again") from e


class TextEncoder:
    """Encodes texts for the graph. Thread-safe: the tokenizer is only read.

    Args:
        tokenizer: adds the template.
        fields: texts of a row.
        n_ids: number past the largest id that the graph takes; None: past the largest of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *, fields: Sequence[str], n_ids: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._fields = tuple(fields)
        self._n_ids = n_ids

    @classmethod
    def from_json(cls, tokenizer_json: str, *, fields: Sequence[str]) -> "TextEncoder":
        """Read a tokenizer.

        Args:
            tokenizer_json: content of `tokenizer.json`.
            fields: texts of a row: `["text"]`, `["text", "text_b"]` or `["text", "choice"]`.

        Raises:
            BundleError: it is not a tokenizer.
        """
        return cls(load_tokenizer(tokenizer_json), fields=fields)

    @cached_property
    def n_ids(self) -> int:
        """Number past the largest id that the graph takes."""
        return 1 + max(self.tokenizer.get_vocab().values()) if self._n_ids is None else self._n_ids

    def encode(self, texts: Sequence[Text], *, numbers: Sequence[int] | None = None) -> list[Encoding]:
        """Encode each text with its template, truncated to the tokenizer's length, without padding.

        Args:
            texts: texts or pairs, as the template takes them.
            numbers: number of each text, for messages; None: from 0.

        Raises:
            DataError: a text is not a string, or not a pair as the template needs; it is not Unicode; its second text
                leaves no room for the first, if only the first is truncated; or it has no token, and the template adds
                none.
        """
        numbers = range(len(texts)) if numbers is None else numbers
        for number, text in zip(numbers, texts, strict=True):
            parts = [text] if len(self._fields) == 1 else text
            if (
                not isinstance(parts, list | tuple)
                or len(parts) != len(self._fields)
                or not all(isinstance(part, str) for part in parts)
            ):
                need = "a string" if len(self._fields) == 1 else f"two strings ({' and '.join(self._fields)})"
                got = f"{len(text)} strings" if isinstance(text, tuple) else type(text).__name__
                raise DataError(f"text {number}: got {got}, need {need}; pass what the template takes")
        try:
            encodings = self.tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
        except Exception as e:  # tokenizers raises plain Exception
            raise self._refusal(texts, numbers) from e
        for number, encoding in zip(numbers, encodings, strict=True):
            if not encoding.ids:
                raise DataError(
                    f"text {number}: got no token, need at least one, since the template adds none; leave the text out"
                )
        return encodings

    def check_ids(self, row: TokenIds, where: str, max_length: int) -> None:
        """Check ids that a caller gives instead of a text.

        Raises:
            DataError: there are none or too many, one is not the tokenizer's, or a token type is not 0 or 1.
        """
        if not 0 < len(row.ids) <= max_length:
            raise DataError(f"{where}: got {len(row.ids)} ids, need 1 to {max_length}; encode it with tokenizer.json")
        if not (min(row.ids) >= 0 and max(row.ids) < self.n_ids):
            raise DataError(f"{where}: got an id out of range, need 0 to {self.n_ids - 1}; use the bundle's tokenizer")
        if not {*row.type_ids} <= {0, 1}:
            raise DataError(f"{where}: got a token type other than 0 and 1; use the bundle's tokenizer")

    def _refusal(self, texts: Sequence[Text], numbers: Sequence[int]) -> DataError:
        """Return the error of the first text that cannot be encoded."""
        for number, text in zip(numbers, texts, strict=True):
            try:
                "".join(text).encode()
                self.tokenizer.encode(*([text] if isinstance(text, str) else text))
            except UnicodeEncodeError:
                return DataError(f"text {number}: holds half of a surrogate pair, need Unicode; decode it first")
            except Exception as e:  # as above
                return DataError(f"text {number}: cannot be tokenised ({reason(e)}); shorten it")
        raise AssertionError("each text can be encoded alone")

    @staticmethod
    def pad(encodings: Sequence[Tokens], *, side: Literal["left", "right"] = "right") -> Ids:
        """Stack encodings into arrays, int64 [rows, longest]; padding has attention mask 0 and id 0.

        The graph computes position ids from the attention mask, so both sides give the same logits. The engine pads on
        the right.
        """
        length = max(len(encoding) for encoding in encodings)
        ids = {
            name: np.zeros((len(encodings), length), dtype=np.int64)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for row, encoding in enumerate(encodings):
            n = len(encoding)
            columns = slice(0, n) if side == "right" else slice(length - n, length)
            ids["input_ids"][row, columns] = encoding.ids
            ids["attention_mask"][row, columns] = 1
            ids["token_type_ids"][row, columns] = encoding.type_ids
        return ids
