"""Texts -> answers by the piece: as texts come, or in turns with other callers; knows sizes, nothing of engines."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CHUNK_TEXTS = 1024
"""Texts held at a time: enough to sort by length, so that little is padded."""

SLICE_TEXTS = 64
"""Texts of one caller that are answered before others get their turn."""

_Text = TypeVar("_Text")
_Answer = TypeVar("_Answer")

Answering = Callable[[Sequence[_Text], int], list[_Answer]]
"""Answers some of a caller's texts, given the number of the first of them, for messages."""


def in_chunks(answer: Answering[_Text, _Answer], texts: Iterator[_Text]) -> Iterator[_Answer]:
    """Answer texts in order, `CHUNK_TEXTS` at a time; the next are read once these answers were taken."""
    first = 0
    while chunk := list(itertools.islice(texts, CHUNK_TEXTS)):
        yield from answer(chunk, first)
        first += len(chunk)


class Turns:
    """One thread in which callers' slices are answered, first come, first served; it starts with the first of them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ptexport")

    async def answer(self, answer: Answering[_Text, _Answer], texts: Sequence[_Text]) -> list[_Answer]:
        """Answer texts in order, `SLICE_TEXTS` at a turn.

        Cancelled, the slice that is being answered is answered to its end and for nobody; no other is begun.
        """
        import asyncio  # who awaits this has it loaded; others need not

        answers: list[_Answer] = []
        for first in range(0, len(texts), SLICE_TEXTS):
            some = texts[first : first + SLICE_TEXTS]
            answers += await asyncio.wrap_future(self._thread.submit(answer, some, first))
        return answers
