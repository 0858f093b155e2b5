"""Texts -> padded ids, by a bundle's tokenizer.json; knows nothing of graphs.

The template is that tokenizer's post-processor, so the ids of virtual tokens come out of `encode` like any others.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from ptexport.runtime.errors import DataError, reason
from ptexport.runtime.ort.io_binding import Ids

Text = str | tuple[str, str]
"""One text, or the two of a pair."""


class TextEncoder:
    """Turns texts into what the graph takes. Thread-safe: the tokenizer is only read."""

    def __init__(self, tokenizer: Tokenizer, *, fields: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._fields = tuple(fields)

    @classmethod
    def from_json(cls, tokenizer_json: str, *, fields: Sequence[str]) -> "TextEncoder":
        """Read what a `tokenizer.json` holds.

        Args:
            tokenizer_json: its text.
            fields: the texts a row brings: `["text"]` or `["text", "text_b"]`.
        """
        return cls(Tokenizer.from_str(tokenizer_json), fields=fields)

    def encode(self, texts: Sequence[Text], *, first: int = 0) -> list[Encoding]:
        """Encode each text, template included, truncated to the tokenizer's own length and not padded.

        Args:
            texts: as the template takes them.
            first: the first one's number, for messages.

        Raises:
            DataError: not a string, or not a pair of them, as the template takes; text that is not Unicode; a second
                text that leaves no room for the first, where only that is cut; one without a token, where the
                template adds none.
        """
        for number, text in enumerate(texts, first):
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
            encodings = self._tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
        except Exception as e:  # tokenizers raises nothing narrower
            raise self._refusal(texts, first) from e
        for number, encoding in enumerate(encodings, first):
            if not encoding.ids:
                raise DataError(f"text {number}: is empty, and the template adds no token to read; leave it out")
        return encodings

    def _refusal(self, texts: Sequence[Text], first: int) -> DataError:
        """Find the first text that cannot be encoded."""
        for number, text in enumerate(texts, first):
            try:
                "".join(text).encode()
                self._tokenizer.encode(*([text] if isinstance(text, str) else text))
            except UnicodeEncodeError:
                return DataError(f"text {number}: holds half of a surrogate pair, need Unicode; decode it first")
            except Exception as e:
                return DataError(f"text {number}: cannot be tokenised ({reason(e)}); shorten it")
        raise AssertionError("each text can be encoded alone")

    @staticmethod
    def pad(encodings: Sequence[Encoding], *, side: Literal["left", "right"] = "right") -> Ids:
        """Stack encodings into arrays as long as the longest; padding has mask 0 and id 0.

        The graph takes positions from the mask, so both sides give the same answer; the engine pads on the right.
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
