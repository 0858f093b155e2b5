"""A run -> the texts that its graph is compared on; knows rows and tokenizers, nothing of models."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.run.run import Run

N_LENGTHS = 7
"""Lengths from 1 token of text to the most, in a geometric series; the longest takes as long as all others together."""

_ALWAYS = ("", "Владивосток, 東京, القاهرة", "[MASK] <mask> <|im_end|> [P 0]")
"""Texts that every export adds: an empty one, other scripts, and the spellings of special tokens."""

GOLDEN = ("Nairobi", "Buenos Aires", "Reykjavík", "東京")
"""Texts of the golden rows."""


def pair_of(run: Run, text: str, other: str) -> Text:
    """Return one text, or both if the run's template takes two."""
    return text if len(run.config.fields) == 1 else (text, other)


def texts_to_check(run: Run, rows: Sequence[Row]) -> list[Text]:
    """List the texts of rows (of a multiple choice, a pair per candidate), then those that every export adds."""
    own = [row.texts for row in pairs(rows, run.config.labels)]
    return own + [pair_of(run, text, text) for text in always_checked(run)]


def always_checked(run: Run) -> Sequence[str]:
    """List the texts that every export adds; not the empty one if the template has no token of its own."""
    return _ALWAYS if run.config.compile(run.tokenizer_json).n_fixed else _ALWAYS[1:]


def texts_of_lengths(run: Run) -> list[Text]:
    """Make texts of built-in city names, from one token to more than the run takes; a pair shares the tokens."""
    config, compiled = run.config, run.config.compile(run.tokenizer_json)
    room = max(config.max_length - config.n_prefix - compiled.n_fixed, 1)
    sizes = sorted({round(size) for size in np.geomspace(1, room, N_LENGTHS)})
    tokenizer = Tokenizer.from_str(run.tokenizer_json)
    tokenizer.no_truncation()
    cities = load_cities()
    names = ", ".join(row.text for row in cities) + ", "  # some thousand tokens
    long = names * (1 + 2 * room // len(cities))
    ends = [end for _, end in tokenizer.encode(long, add_special_tokens=False).offsets]

    def text(tokens: int) -> str:
        return long[: ends[tokens - 1]] if tokens else ""

    if len(run.config.fields) == 1:
        return [text(size) for size in (*sizes, 2 * room)]
    return [*((text(size - size // 2), text(size // 2)) for size in sizes), (text(2 * room), text(room // 2))]
