"""A process that asks a server over HTTP and counts what comes back; knows nothing of bundles or reports.

    python -m ptexport.toolkit.bench.serve.load URL

The first line of JSON, a `Texts`, says what texts are made of; each that follows, a `Run`, is answered with a `Seen`.
Each request is a POST of one text that was not asked before.

A latency counts from when its request was due, whenever it could be sent: a server that stops for a second makes all
wait that were due in that second, not only the one it was answering (Gil Tene, "How NOT to Measure Latency":
coordinated omission). The parser is httptools, which the server needs too: 0.5 µs an answer, where h11 takes 43.
"""

import asyncio
import itertools
import random
import selectors
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import httptools
import msgspec

from ptexport.toolkit.bench.texts import make_texts

_TEXTS_AT_ONCE = 64


class Texts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What texts are made of.

    Attributes:
        words: one token each.
        tokens: of each text.
    """

    words: list[str]
    tokens: int


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests for some seconds.

    Attributes:
        name: another for each run; texts and arrivals are drawn from it.
        connections: most requests under way; others wait here, their latency counting.
        rate: requests a second, due at random whatever the server does (a Poisson process); None: as many clients as
            connections, each of which asks again once it has its answer.
        warm_up_s: before anything counts, and until each client has had an answer.
        seconds: in which requests must be due to count.
        timeout_s: from when a request is due until nobody waits for its answer any more.
    """

    name: str
    connections: int
    rate: float | None
    warm_up_s: float
    seconds: float
    timeout_s: float


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of a run.

    Attributes:
        latencies_s: of requests answered with status 200, and of those that timed out, which count as the time-out; in
            the order in which they were due.
        failures: other requests and those that timed out, by what happened.
        answered: with status 200 within the seconds, a second.
        late_s: from when each request was due until this process came to it; empty without a rate.
        cpu: share of one CPU that this process used.
    """

    latencies_s: list[float]
    failures: dict[str, int]
    answered: float
    late_s: list[float]
    cpu: float


def main() -> None:
    """Answer lines until there are no more."""
    address = urlsplit(sys.argv[1])
    texts = msgspec.json.decode(sys.stdin.readline(), type=Texts)
    _say("ready")
    # epoll waits for whole milliseconds, select for what it is told.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        for line in sys.stdin:
            run = msgspec.json.decode(line, type=Run)
            requests = _requests(texts, run.name, address.netloc, address.path)
            load = _Load(run, requests, address.hostname or "", address.port or 80)
            _say(runner.run(load.measure()))


def _say(what: str | Seen) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
    sys.stdout.flush()


def _requests(texts: Texts, name: str, host: str, path: str) -> Iterator[bytes]:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    for number in itertools.count():
        for text in make_texts(texts.words, _TEXTS_AT_ONCE, texts.tokens, f"{name} {number}"):
            body = msgspec.json.encode({"texts": [text]})
            yield f"{head}{len(body)}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes) -> int:
        """Send a request and wait for the status of its answer, which has then come whole."""
        self._status = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._status

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.transport.close()
        if not self._status.done():
            self._status.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._status.done():
            self._status.set_exception(ConnectionResetError("closed before the answer came"))
            self._status.exception()  # nobody waits for the first one's


class _Load:
    """One run."""

    def __init__(self, run: Run, requests: Iterator[bytes], host: str, port: int) -> None:
        self._run, self._requests, self._host, self._port = run, requests, host, port
        self._slots = asyncio.Semaphore(run.connections)
        self._idle: list[_Connection] = []
        self._begin = self._end = float("inf")
        self._latencies: list[tuple[float, float]] = []  # when due, and how long it took
        self._failures: Counter[str] = Counter()
        self._late: list[float] = []
        self._answered, self._cpu = 0, 0.0

    async def measure(self) -> Seen:
        """Ask until the seconds are over and all that were asked have ended."""
        if self._run.rate is None:
            await self._ask_in_turn()
        else:
            await self._ask_at(self._run.rate)
        for connection in self._idle:
            connection.transport.abort()
        return Seen(
            latencies_s=[latency for _, latency in sorted(self._latencies)],
            failures=self._failures,
            answered=self._answered / self._run.seconds,
            late_s=self._late,
            cpu=self._cpu,
        )

    async def _ask_in_turn(self) -> None:
        """Closed loop."""
        without_answer = self._run.connections
        all_answered = asyncio.Event()

        async def client() -> None:
            nonlocal without_answer
            await self._ask(time.monotonic())
            without_answer -= 1
            if not without_answer:
                all_answered.set()
            while time.monotonic() < self._end:
                await self._ask(time.monotonic())

        clients = [asyncio.create_task(client()) for _ in range(self._run.connections)]
        await asyncio.sleep(self._run.warm_up_s)
        await all_answered.wait()
        self._count_from(time.monotonic())
        await self._measure_cpu()
        await asyncio.gather(*clients)

    async def _ask_at(self, rate: float) -> None:
        """Open loop."""
        gaps = random.Random(self._run.name)
        due = time.monotonic()
        self._count_from(due + self._run.warm_up_s)
        asked = [asyncio.create_task(self._measure_cpu())]
        while (due := due + gaps.expovariate(rate)) < self._end:
            await asyncio.sleep(max(0, due - time.monotonic()))  # 0 lets answers come, however late it is
            if due >= self._begin:
                self._late.append(time.monotonic() - due)
            asked.append(asyncio.create_task(self._ask(due)))
        await asyncio.gather(*asked)

    def _count_from(self, begin: float) -> None:
        self._begin, self._end = begin, begin + self._run.seconds

    async def _measure_cpu(self) -> None:
        """Wait for the seconds that count to begin and end, and see what this process took of a CPU."""
        await asyncio.sleep(self._begin - time.monotonic())
        wall, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(self._end - wall)
        self._cpu = (time.process_time() - cpu) / (time.monotonic() - wall)

    async def _ask(self, due: float) -> None:
        outcome: int | Literal["time-out", "connection"]
        try:
            async with asyncio.timeout_at(due + self._run.timeout_s), self._slots:
                outcome = await self._exchange()
        except TimeoutError:  # before OSError, which it is
            outcome = "time-out"
        except OSError:
            outcome = "connection"
        now = time.monotonic()
        if outcome == 200 and self._begin <= now < self._end:
            self._answered += 1
        if not self._begin <= due < self._end:
            return
        if outcome == 200:
            self._latencies.append((due, now - due))
        else:
            self._failures[str(outcome)] += 1
        if outcome == "time-out":
            self._latencies.append((due, self._run.timeout_s))

    async def _exchange(self) -> int:
        """Ask on the connection that was used last, whose peer least likely gives it up, or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            status = await connection.ask(next(self._requests))
        except BaseException:  # cancelled too: its answer must not be taken for another request's
            connection.transport.abort()
            raise
        self._idle.append(connection)
        return status


if __name__ == "__main__":
    main()
