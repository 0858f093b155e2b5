"""Requests as bytes -> when each was due, was sent and ended, with what status.

A request costs about 30 µs here, so that a server can be overloaded on its own machine: no task per request, one timer
for all timeouts. The HTTP parser is httptools, which the server needs anyway; it takes 0.5 µs per response, h11 43 µs.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import httptools

BROKEN, TIMED_OUT = 0, -1
"""Codes of requests without a status."""

_AT_ONCE = 16  # late requests that are sent before responses are read
_SLEEP_S = 0.001  # the least that uvloop can wait
_SWEEP_S = 0.02

Mark = tuple[float, float]
"""The time and the CPU time of this process at the begin or end of a phase."""


class Ended(NamedTuple):
    """A request that ended; times are `time.monotonic`."""

    due: float
    sent: float
    end: float
    code: int


class _Connection(asyncio.Protocol):
    """An HTTP connection with one request at a time."""

    transport: asyncio.Transport

    def __init__(self, sending: "Sending") -> None:
        self._sending = sending
        self._parser = httptools.HttpResponseParser(self)
        self.due: float | None = None  # of the request that has no response yet
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._sending.has_opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.transport.close()
        if self.due is not None:
            self._sending.has_ended(self, self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        self._sending.has_closed(self)


class Sending:
    """Sends requests over some connections.

    Args:
        requests: bytes of each request; without end.
        host: host of the server.
        port: port of the server.
        connections: most connections; requests beyond wait for one.
        timeout_s: time after which a request without a response has ended.
    """

    def __init__(self, requests: Iterator[bytes], host: str, port: int, *, connections: int, timeout_s: float) -> None:
        self.ended: list[Ended] = []
        self._requests, self._host, self._port = requests, host, port
        self._most, self._timeout_s = connections, timeout_s
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._backlog: deque[float] = deque()  # due times of requests that wait for a connection
        self._pending = 0
        self._clients_until = float("-inf")  # closed loop: until when each response starts the next request

    async def at_random_times(
        self, gaps: random.Random, rates: Sequence[float], seconds: Sequence[float]
    ) -> list[Mark]:
        """Send requests at random times in phases; return the marks from the end of the first phase, the warm-up, on.

        Args:
            gaps: source of the gaps between requests.
            rates: requests per second of each phase.
            seconds: duration of each phase.
        """
        sweep = asyncio.create_task(self._sweep())
        marks: list[Mark] = []
        end = due = time.monotonic()
        n_at_once = 0
        for rate, duration in zip(rates, seconds, strict=True):
            end += duration
            while (due := due + gaps.expovariate(rate)) < end:
                while (left := due - time.monotonic()) > 0:
                    n_at_once = 0
                    await asyncio.sleep(max(left, _SLEEP_S if _is_coarse() else 0))
                n_at_once += 1
                if n_at_once % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                self._begin(due)
            due = end  # a Poisson process has no memory
            await asyncio.sleep(max(0, end - time.monotonic()))
            marks.append((end, time.process_time()))
        sweep.cancel()
        return marks

    async def one_after_another(self, warm_up_s: float, seconds: float) -> list[Mark]:
        """Let each client send its next request when it has the response; return the marks of begin and end."""
        sweep = asyncio.create_task(self._sweep())
        self._clients_until = float("inf")
        for _ in range(self._most):
            self._begin(time.monotonic())
        first = time.monotonic()
        await asyncio.sleep(warm_up_s)
        while sum(one.due <= first for one in self.ended) < self._most:  # each client has had a response
            await asyncio.sleep(_SWEEP_S)
        begin = time.monotonic(), time.process_time()
        self._clients_until = begin[0] + seconds
        await asyncio.sleep(seconds)
        sweep.cancel()
        return [begin, (begin[0] + seconds, time.process_time())]

    async def finish(self) -> None:
        """Wait until all requests have ended, and close all connections."""
        self._clients_until = float("-inf")
        sweep = asyncio.create_task(self._sweep())
        while self._pending:
            await asyncio.sleep(_SWEEP_S)
        sweep.cancel()
        for task in self._connecting:
            task.cancel()
        for connection in self._open:
            connection.transport.abort()
        await asyncio.sleep(0)

    def has_opened(self, connection: _Connection) -> None:
        """Use a new connection."""
        self._open.add(connection)
        self._use(connection)

    def has_ended(self, connection: _Connection, code: int) -> None:
        """Take note of a response, and use the connection for the next request."""
        assert connection.due is not None
        self._note(connection.due, connection.sent, code)
        connection.due = None
        if not connection.transport.is_closing():
            self._use(connection)

    def has_closed(self, connection: _Connection) -> None:
        """Forget a connection; its request has failed."""
        self._open.discard(connection)
        if connection.due is not None:
            due, connection.due = connection.due, None
            self._note(due, connection.sent, BROKEN)
        self._connect_for_backlog()

    def _use(self, connection: _Connection) -> None:
        if self._backlog:
            self._send(connection, self._backlog.popleft())
        else:
            self._idle.append(connection)

    def _note(self, due: float, sent: float, code: int) -> None:
        """Note the end of a request. In a closed loop its client sends the next one."""
        now = time.monotonic()
        self.ended.append(Ended(due, sent, due + self._timeout_s if code == TIMED_OUT else now, code))
        self._pending -= 1
        if now < self._clients_until:
            asyncio.get_running_loop().call_soon(self._next_of_client)

    def _next_of_client(self) -> None:
        if (now := time.monotonic()) < self._clients_until:
            self._begin(now)

    def _begin(self, due: float) -> None:
        """Send a request on the most recently used connection, which is least likely to be closed, or on a new one."""
        self._pending += 1
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                self._send(connection, due)
                return
        self._backlog.append(due)
        self._connect_for_backlog()

    def _send(self, connection: _Connection, due: float) -> None:
        connection.due, connection.sent = due, time.monotonic()
        connection.transport.write(next(self._requests))

    def _connect_for_backlog(self) -> None:
        n_connecting = len(self._connecting)
        if n_connecting < len(self._backlog) and len(self._open) + n_connecting < self._most:
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            if self._backlog:
                due = self._backlog.popleft()
                self._note(due, time.monotonic(), BROKEN)

    async def _sweep(self) -> None:
        """End requests that have no response in time."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            before = time.monotonic() - self._timeout_s
            while self._backlog and self._backlog[0] <= before:
                due = self._backlog.popleft()
                self._note(due, due + self._timeout_s, TIMED_OUT)
            for connection in [one for one in self._open if one.due is not None and one.due <= before]:
                assert connection.due is not None
                self._note(connection.due, connection.sent, TIMED_OUT)
                connection.due = None  # the response must not count for another request
                connection.transport.abort()


def _is_coarse() -> bool:
    return not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
