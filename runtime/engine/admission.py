"""How long texts wait, from how long batches took: who is refused, and how many rows a batch has."""

import time

from ptexport.runtime.errors import BusyError
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS

_DECAY = 0.95  # of the past in the mean times, with each batch
_SHARE_OF_DEADLINE = 0.7
"""Texts are taken if their turn is expected within this share of their time: the expectation is a mean."""
_BATCH_SHARE_OF_DEADLINE = 1 / 3
"""A batch is expected to take at most this share of the shortest time of its rows: who comes meanwhile waits for it."""


class Admission:
    """The texts that wait, and the mean times of batches.

    Not thread-safe: the batcher's lock guards what callers change, and its engine thread alone takes note of batches.

    Args:
        max_waiting: most texts that may wait; None: any number. A caller alone may have more.
    """

    def __init__(self, max_waiting: int | None) -> None:
        self.max_waiting = max_waiting
        self.waiting = 0  # texts that are submitted and not answered
        self._before = 0  # those that are computed before the texts of a new caller, since callers take turns
        self._batch_rows = MAX_BATCH_ROWS  # most rows of a batch of any graph so far
        self._batch_ended = 0.0
        self._batch_s = 0.0  # mean time of a batch
        self._recent_s = self._recent_texts = 0.0  # times from batch to batch while texts wait, and their texts

    @property
    def s_per_text(self) -> float:
        """Mean seconds of a text while others wait; 0 if nothing is known yet."""
        return self._recent_s / self._recent_texts if self._recent_texts else 0.0

    def check(self, n: int, within_s: float | None) -> None:
        """Refuse a caller with some texts if too many wait, or longer than it can.

        Raises:
            BusyError: that is so.
        """
        if self.max_waiting is not None and self.waiting and self.waiting + n > self.max_waiting:
            raise BusyError(
                f"queue: got {n} texts with {self.waiting} waiting, need at most {self.max_waiting} together; "
                "send them again later",
                retry_after_s=(self.waiting + n - self.max_waiting) * self.s_per_text,
            )
        expected_s = (self._before if n <= self._batch_rows else self.waiting) * self.s_per_text
        if within_s is not None and expected_s > _SHARE_OF_DEADLINE * within_s:
            raise BusyError(
                f"queue: got {within_s:.3g} s for an answer, need about {expected_s:.1f} s; send them again later",
                retry_after_s=max(0.0, expected_s - _SHARE_OF_DEADLINE * within_s),
            )

    def enter(self, n: int, batch_rows: int) -> None:
        """Count the texts of a caller, whose graph has batches of so many rows."""
        self._batch_rows = max(self._batch_rows, batch_rows)
        self.waiting += n
        self._before += min(n, batch_rows)

    def leave(self, n: int, batch_rows: int) -> None:
        """Count them no longer."""
        self.waiting -= n
        self._before -= min(n, batch_rows)

    def begin(self) -> None:
        """Begin to count time: texts wait again."""
        self._batch_ended = time.perf_counter()

    def batch_done(self, rows: int, seconds: float) -> None:
        """Take note of a batch."""
        now = time.perf_counter()
        self._recent_s = self._recent_s * _DECAY + now - self._batch_ended
        self._recent_texts = self._recent_texts * _DECAY + rows
        self._batch_s = seconds if not self._batch_s else self._batch_s * _DECAY + seconds * (1 - _DECAY)
        self._batch_ended = now

    def most_rows(self, batch_rows: int, shortest_s: float | None) -> int:
        """Return the most rows of a batch, so that it leaves time for the batch after it.

        Args:
            batch_rows: most rows that suit the device.
            shortest_s: shortest time that a row in it was given; None: any time.
        """
        if shortest_s is None or not self.s_per_text:
            return batch_rows
        return max(1, min(batch_rows, int(shortest_s * _BATCH_SHARE_OF_DEADLINE / self.s_per_text)))

    def late_after(self) -> float:
        """Return the `time.perf_counter` at which the next batch ends: rows due before it are dropped.

        If nobody else waits, that is now: then even a late batch costs no one anything.
        """
        return time.perf_counter() + (self._batch_s if self.waiting > self._batch_rows else 0.0)
