"""A load generator: a process that sends HTTP requests and measures latencies; knows nothing of bundles or reports.

    python -m ptexport.toolkit.bench.serve.load URL

The first line of standard input is a `TextSource` as JSON. Each further line is a `LoadRun`, and its response is a
`LoadSample`. A request is a POST of one text; no text occurs twice.

Latency starts when a request was due, even if it could only be sent later. If a server stops for a second, all requests
due in that second are late, not only the one in progress (Gil Tene, "How NOT to Measure Latency": coordinated
omission). The HTTP parser is httptools, which the server needs anyway; it takes 0.5 µs per response, h11 43 µs.
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

from ptexport.toolkit.bench.synthetic_texts import make_texts

_TEXTS_AT_ONCE = 64


class TextSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of the texts.

    Attributes:
        words: words of one token each.
        tokens: number of words per text.
    """

    words: list[str]
    tokens: int


class LoadRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one run.

    Attributes:
        name: unique name; it seeds the texts and the arrival times.
        connections: largest number of concurrent requests; further ones wait in this process, which adds to latency.
        rate: open loop: requests per second at random times, independent of the server (a Poisson process). None:
            closed loop: `connections` clients, each of which sends its next request when it has the response.
        warm_up_s: duration before the measurement; in a closed loop at least until each client has a response.
        seconds: duration of the measurement; requests that are due in it count.
        timeout_s: longest wait for a response after a request was due.
    """

    name: str
    connections: int
    rate: float | None
    warm_up_s: float
    seconds: float
    timeout_s: float


class LoadSample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The measurements of one run.

    Attributes:
        latencies_s: latencies of requests with status 200, and `timeout_s` for each that timed out, in the order in
            which they were due.
        failures: number of failed requests by kind: HTTP status, "time-out" or "connection".
        throughput: responses with status 200 per second.
        late_s: delay of each request in this process after it was due; empty in a closed loop.
        cpu: share of one CPU that this process used.
    """

    latencies_s: list[float]
    failures: dict[str, int]
    throughput: float
    late_s: list[float]
    cpu: float


def main() -> None:
    """Run every line of standard input and write its sample."""
    address = urlsplit(sys.argv[1])
    source = msgspec.json.decode(sys.stdin.readline(), type=TextSource)
    _respond("ready")
    # epoll waits for whole milliseconds, select is more precise.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        for line in sys.stdin:
            run = msgspec.json.decode(line, type=LoadRun)
            requests = _requests(source, run.name, address.netloc, address.path)
            load = _Load(run, requests, address.hostname or "", address.port or 80)
            _respond(runner.run(load.measure()))


def _respond(content: str | LoadSample) -> None:
    sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
    sys.stdout.flush()


def _requests(source: TextSource, name: str, host: str, path: str) -> Iterator[bytes]:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    for number in itertools.count():
        for text in make_texts(source.words, _TEXTS_AT_ONCE, source.tokens, f"{name} {number}"):
            body = msgspec.json.encode({"texts": [text]})
            yield f"{head}{len(body)}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """An HTTP connection with one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def send(self, request: bytes) -> int:
        """Send a request and return the status of its complete response."""
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
            self._status.set_exception(ConnectionResetError("closed before the response was complete"))
            self._status.exception()  # marks it as retrieved: no request may be waiting


class _Load:
    """The execution of one run."""

    def __init__(self, run: LoadRun, requests: Iterator[bytes], host: str, port: int) -> None:
        self._run, self._requests, self._host, self._port = run, requests, host, port
        self._slots = asyncio.Semaphore(run.connections)
        self._idle: list[_Connection] = []
        self._begin = self._end = float("inf")
        self._latencies: list[tuple[float, float]] = []  # time when due, and duration
        self._failures: Counter[str] = Counter()
        self._late: list[float] = []
        self._n_responses, self._cpu = 0, 0.0

    async def measure(self) -> LoadSample:
        """Send requests for the duration of the run, and wait for all of them to end."""
        if self._run.rate is None:
            await self._run_closed_loop()
        else:
            await self._run_open_loop(self._run.rate)
        for connection in self._idle:
            connection.transport.abort()
        return LoadSample(
            latencies_s=[latency for _, latency in sorted(self._latencies)],
            failures=self._failures,
            throughput=self._n_responses / self._run.seconds,
            late_s=self._late,
            cpu=self._cpu,
        )

    async def _run_closed_loop(self) -> None:
        """Let each client send its next request when it has the response."""
        waiting = self._run.connections
        all_responded = asyncio.Event()

        async def client() -> None:
            nonlocal waiting
            await self._request(time.monotonic())
            waiting -= 1
            if not waiting:
                all_responded.set()
            while time.monotonic() < self._end:
                await self._request(time.monotonic())

        clients = [asyncio.create_task(client()) for _ in range(self._run.connections)]
        await asyncio.sleep(self._run.warm_up_s)
        await all_responded.wait()
        self._count_from(time.monotonic())
        await self._measure_cpu()
        await asyncio.gather(*clients)

    async def _run_open_loop(self, rate: float) -> None:
        """Send requests at random times."""
        gaps = random.Random(self._run.name)
        due = time.monotonic()
        self._count_from(due + self._run.warm_up_s)
        tasks = [asyncio.create_task(self._measure_cpu())]
        while (due := due + gaps.expovariate(rate)) < self._end:
            await asyncio.sleep(max(0, due - time.monotonic()))  # also 0, so that responses are read however late it is
            if due >= self._begin:
                self._late.append(time.monotonic() - due)
            tasks.append(asyncio.create_task(self._request(due)))
        await asyncio.gather(*tasks)

    def _count_from(self, begin: float) -> None:
        self._begin, self._end = begin, begin + self._run.seconds

    async def _measure_cpu(self) -> None:
        """Measure the CPU time of this process between the begin and the end of the measurement."""
        await asyncio.sleep(self._begin - time.monotonic())
        wall, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(self._end - wall)
        self._cpu = (time.process_time() - cpu) / (time.monotonic() - wall)

    async def _request(self, due: float) -> None:
        outcome: int | Literal["time-out", "connection"]
        try:
            async with asyncio.timeout_at(due + self._run.timeout_s), self._slots:
                outcome = await self._exchange()
        except TimeoutError:  # a subclass of OSError
            outcome = "time-out"
        except OSError:
            outcome = "connection"
        now = time.monotonic()
        if outcome == 200 and self._begin <= now < self._end:
            self._n_responses += 1
        if not self._begin <= due < self._end:
            return
        if outcome == 200:
            self._latencies.append((due, now - due))
        else:
            self._failures[str(outcome)] += 1
        if outcome == "time-out":
            self._latencies.append((due, self._run.timeout_s))

    async def _exchange(self) -> int:
        """Send a request on the most recently used connection, which is least likely to be closed, or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            status = await connection.send(next(self._requests))
        except BaseException:  # also if cancelled: the response must not count for another request
            connection.transport.abort()
            raise
        self._idle.append(connection)
        return status


if __name__ == "__main__":
    main()
