"""One request while it is answered, and what it ends with if it fails."""

import asyncio
import time
from dataclasses import dataclass, field

from ptexport.runtime.engine.answer import Timing
from ptexport.runtime.errors import (
    BusyError,
    ClientGoneError,
    DataError,
    DeadlineError,
    LargeRequestError,
    RequestError,
    TooLongError,
    UnknownModelError,
)
from ptexport.runtime.monitoring.records import Protocol, Reason, RequestRecord

CLIENT_GONE = 499
"""nginx's status of a request whose client hung up; nobody reads it."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request while it is answered; the service fills in what it learns.

    Attributes:
        protocol: how it came.
        request_id: its id in logs and in the response.
        trace: trace id of the caller's; None: it sent none.
        timeout_s: seconds that the transport gives it; None: any time.
        started: when it began, by `time.perf_counter`.
    """

    protocol: Protocol
    request_id: str
    trace: str | None = None
    timeout_s: float | None = None
    started: float = field(default_factory=time.perf_counter)
    model: str = ""
    version: str = ""
    texts: int = 0
    tokens: int = 0
    timing: Timing | None = None

    def record(self, code: int, reason: Reason | None) -> RequestRecord:
        """Return the record of the request, which has ended with an HTTP status."""
        return RequestRecord(
            model=self.model,
            version=self.version,
            protocol=self.protocol,
            request_id=self.request_id,
            code=code,
            reason=reason,
            texts=self.texts,
            tokens=self.tokens,
            timing=self.timing,
            total_s=time.perf_counter() - self.started,
            trace=self.trace,
        )

    def left_s(self, timeout_s: float | None) -> float | None:
        """Return the seconds until its deadline, the earlier one of the transport's and the request's own.

        Raises:
            DeadlineError: it has passed.
        """
        given = [seconds for seconds in (self.timeout_s, timeout_s) if seconds is not None]
        if not given:
            return None
        left_s = min(given) - (time.perf_counter() - self.started)
        if left_s <= 0:
            raise DeadlineError.after(min(given))
        return left_s


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed request ends with.

    Attributes:
        code: HTTP status.
        reason: for metrics.
        message: one sentence.
        retry_after_s: seconds after which it may be sent again; None: sending it again does not help.
    """

    code: int
    reason: Reason
    message: str
    retry_after_s: float | None = None


_CODES: tuple[tuple[type[Exception], int], ...] = (
    (UnknownModelError, 404),
    (LargeRequestError, 413),
    (TooLongError, 422),
    (RequestError, 400),
    (DataError, 400),
)


def failure_of(error: BaseException) -> Failure:
    """Return what a request ends with that raised an error."""
    if isinstance(error, BusyError):
        return Failure(429, "REJECTED", str(error), error.retry_after_s)
    if isinstance(error, ClientGoneError):
        return Failure(CLIENT_GONE, "CANCELED", "client: hung up before the answer was ready")
    if isinstance(error, DeadlineError):
        return Failure(504, "CANCELED", str(error))
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Failure(code, "OTHER", str(error))
    if isinstance(error, asyncio.CancelledError):
        return Failure(503, "CANCELED", "server: stopped before the answer was ready; send the texts again")
    return Failure(500, "BACKEND", "server: failed with an internal error; see its log")
