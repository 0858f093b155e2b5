"""Work in pieces: an iterable in chunks, and async callers that take turns of one batch."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CHUNK_TEXTS = 1024
"""Texts in memory at a time: enough to sort by length, so that batches have little padding."""

SLICE_TEXTS = 64
"""Texts of one caller that are tokenised in one turn."""

_Text = TypeVar("_Text")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Predicting = Callable[[Sequence[_Text], int], list[_Item]]
"""Makes predictions for some texts; the second argument is the number of the first text, for messages."""

Work = Generator[None, None, _Result]
"""Makes a result in turns: yields after each turn but the last."""


def in_chunks(predict: Predicting[_Text, _Item], texts: Iterator[_Text]) -> Iterator[_Item]:
    """Predict texts in order, `CHUNK_TEXTS` at a time; the next chunk is read once the last has been consumed."""
    first = 0
    while chunk := list(itertools.islice(texts, CHUNK_TEXTS)):
        yield from predict(chunk, first)
        first += len(chunk)


def in_slices(
    predicting: Callable[[Sequence[_Text], int], Work[list[_Item]]], texts: Sequence[_Text]
) -> Work[list[_Item]]:
    """Predict texts in order, `SLICE_TEXTS` at a time."""
    made: list[_Item] = []
    for first in range(0, len(texts), SLICE_TEXTS):
        if first:
            yield
        made += yield from predicting(texts[first : first + SLICE_TEXTS], first)
    return made


def at_once(work: Work[_Result]) -> _Result:
    """Do all turns of some work, and return its result."""
    while not (ended := _turn(work)):
        pass
    return ended[0]


class Turns:
    """One thread that does the work of all callers, one turn at a time, first come, first served."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ptexport")

    async def do(self, work: Work[_Result]) -> _Result:
        """Do work turn by turn, and return its result.

        Cancellation takes effect after the current turn; no further turn is run.
        """
        import asyncio  # only async callers need it, and they have loaded it

        while not (ended := await asyncio.wrap_future(self._thread.submit(_turn, work))):
            pass
        return ended[0]


def _turn(work: Work[_Result]) -> tuple[_Result] | None:
    """Do one turn of some work; returns the result in a tuple, or None if there are more turns."""
    try:
        next(work)
    except StopIteration as e:
        return (e.value,)
    return None
