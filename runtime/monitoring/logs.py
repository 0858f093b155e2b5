"""Events and records -> lines of JSON on standard error.

A line has no text of a request, no label and no id of a token: it is made from the fields of a RequestRecord, which has
none, and of an error only its type and place are written, since its message may quote anything.
"""

import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from threading import Condition, Thread
from types import TracebackType
from typing import Literal

from ptexport.runtime.monitoring.records import RequestRecord

Event = Literal[
    "model-loaded",
    "model-swapped",
    "model-removed",
    "model-refused",
    "watch-failed",
    "watch-resumed",
    "request",
    "traces-lost",
    "lines-lost",
    "error",
    "stopping",
    "stopped",
]
Level = Literal["info", "warning", "error"]
Field = str | int | float | bool | None | Sequence["Field"] | Mapping[str, "Field"]

MAX_WAITING = 10_000
"""Lines that wait for a slow reader of standard error before further ones are lost: about 4 MB."""

_FRAMES = 8
_REQUEST_ID = re.compile(r"[!#-&(-~]{1,128}")
"""Printable ASCII without a space and without both quotes."""

_RANDOM = random.Random()
"""Unlike os.urandom it does not let go of the interpreter, which a busy engine would take for a while."""


def request_id(header: str | None) -> str:
    """Return the id of a request: the caller's if it can stand in a log and a header, else a new one.

    Args:
        header: the caller's `x-request-id`; None: it sent none.
    """
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    return f"{_RANDOM.getrandbits(128):032x}"


class Logs:
    """Lines of JSON on a file descriptor, written on a thread of its own.

    No method waits for the reader and none raises: lines that find no room are lost, and counted in the next line that
    does. Thread-safe. If the descriptor is closed or its reader has gone, every further line is lost.

    Args:
        descriptor: to write to; it stays open.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._closing = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="ptexport-logs", daemon=True)
        self._thread.start()

    def write(self, event: Event, level: Level = "info", **fields: Field) -> None:
        """Write one line.

        Args:
            event: what happened.
            level: how bad it is.
            fields: what else to say; nothing of a request's content.
        """
        line = _line(event, level, fields)
        with self._changed:
            if len(self._lines) >= MAX_WAITING or self._closing:
                self._lost += 1
                return
            if self._lost:
                self._lines.append(_line("lines-lost", "warning", {"lines": self._lost}))
                self._lost = 0
            self._lines.append(line)
            self._changed.notify()

    def request(self, record: RequestRecord) -> None:
        """Write a request that is answered."""
        timing = record.timing
        parts: dict[str, Field] = (
            {}
            if timing is None
            else {
                "queue_ms": _ms(timing.queue_s),
                "tokenize_ms": _ms(timing.tokenise_s),
                "compute_ms": _ms(timing.compute_s),
            }
        )
        self.write(
            "request",
            "error" if record.reason == "BACKEND" else "info",
            request_id=record.request_id,
            model=record.model,
            version=record.version,
            protocol=record.protocol,
            code=record.code,
            reason=record.reason,
            texts=record.texts,
            tokens=record.tokens,
            **parts,
            total_ms=_ms(record.total_s),
            trace=record.trace,
        )

    def failed(self, error: BaseException, request_id: str | None = None) -> None:
        """Write an error that was not foreseen: its type and place, and those of its causes.

        Args:
            error: as caught; its message is left out.
            request_id: of the request that met it; None: it was no request.
        """
        causes: list[Field] = []
        cause: BaseException | None = error
        while cause is not None and len(causes) < _FRAMES:
            causes.append({"type": type(cause).__qualname__, "place": _place(cause.__traceback__)})
            cause = cause.__cause__ or cause.__context__
        self.write("error", "error", request_id=request_id, errors=causes)

    def close(self, wait_s: float = 1.0) -> None:
        """Write the lines that wait, for at most `wait_s` seconds. Later lines are lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closing:
                    self._changed.wait()
                if not self._lines:
                    return
                # Few lines at once: those that are being written are not counted as waiting.
                lines = b"".join(self._lines.popleft() for _ in range(min(100, len(self._lines))))
            self._write(lines)

    def _write(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines) :]
            except BlockingIOError:  # another process made the descriptor non-blocking
                time.sleep(0.01)
            except OSError:  # nobody reads it, or the disk is full: there is nowhere left to say so
                with self._changed:
                    self._lost += lines.count(b"\n")
                return


def _line(event: Event, level: Level, fields: Mapping[str, Field]) -> bytes:
    """Make a line. It is ASCII, so a value can neither end it nor steer a terminal."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"time": now, "level": level, "event": event, **fields}, separators=(",", ":"))
    return line.replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _place(traceback: TracebackType | None) -> list[Field]:
    """Return the innermost frames as "module:line function", outermost first."""
    frames: deque[Field] = deque(maxlen=_FRAMES)
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "?")
        frames.append(f"{module}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    return list(frames)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
