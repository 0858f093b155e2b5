"""Texts -> answers by the piece: as texts come, or in turns with other callers; knows sizes, nothing of engines."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CHUNK_TEXTS = 1024
"""Texts held at a time: enough to sort by length, so that little is padded."""

SLICE_TEXTS = 64
"""Texts of one caller that are tokenised at a time while others may wait."""

_Text = TypeVar("_Text")
_Answer = TypeVar("_Answer")
_Result = TypeVar("_Result")

Answering = Callable[[Sequence[_Text], int], list[_Answer]]
"""Answers some of a caller's texts, given the number of the first of them, for messages."""

Work = Generator[None, None, _Result]
"""Makes a result, and yields wherever others may have their turn."""


def in_chunks(answer: Answering[_Text, _Answer], texts: Iterator[_Text]) -> Iterator[_Answer]:
    """Answer texts in order, `CHUNK_TEXTS` at a time; the next are read once these answers were taken."""
    first = 0
    while chunk := list(itertools.islice(texts, CHUNK_TEXTS)):
        yield from answer(chunk, first)
        first += len(chunk)


def in_slices(
    answering: Callable[[Sequence[_Text], int], Work[list[_Answer]]], texts: Sequence[_Text]
) -> Work[list[_Answer]]:
    """Answer texts in order, `SLICE_TEXTS` at a time."""
    answers: list[_Answer] = []
    for first in range(0, len(texts), SLICE_TEXTS):
        if first:
            yield
        answers += yield from answering(texts[first : first + SLICE_TEXTS], first)
    return answers


def at_once(work: Work[_Result]) -> _Result:
    """Do work in one turn."""
    while not (ended := _turn(work)):
        pass
    return ended[0]


class Turns:
    """One thread in which callers' work is done, a turn each, first come, first served; it starts with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ptexport")

    async def do(self, work: Work[_Result]) -> _Result:
        """Do work, turn by turn.

        Cancelled, the turn that has begun is finished for nobody; no other is begun.
        """
        import asyncio  # who awaits this has it loaded; others need not

        while not (ended := await asyncio.wrap_future(self._thread.submit(_turn, work))):
            pass
        return ended[0]


def _turn(work: Work[_Result]) -> tuple[_Result] | None:
    """Do work until it yields or ends; None: it goes on."""
    try:
        next(work)
    except StopIteration as e:
        return (e.value,)
    return None
