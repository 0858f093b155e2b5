"""A load generator: a process that sends HTTP requests and measures latencies; knows nothing of bundles or reports.

    python -m ptexport.toolkit.bench.serve.load URL

The first line of standard input is a `TextSource` as JSON. Each further line is a `LoadRun`, and its response is a list
with a `LoadSample` per phase. A request is a POST of one text; no text occurs twice.

Latency starts when a request was due, even if it could only be sent later. If a server stops for a second, all requests
due in that second are late, not only the one in progress (Gil Tene, "How NOT to Measure Latency": coordinated
omission).
"""

import asyncio
import itertools
import random
import selectors
import sys
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec
import uvloop

from ptexport.toolkit.bench.serve.sending import BROKEN, TIMED_OUT, Ended, Sending

_MANY = 1000
"""Requests per second from which the cheaper event loop is used, although it waits for whole milliseconds."""


class TextSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The source of the texts.

    Attributes:
        words: words of one token each.
        fewest: number of words of the shortest text.
        most: number of words of the longest text.
    """

    words: list[str]
    fewest: int
    most: int

    def texts(self, seed: str) -> Iterator[str]:
        """Make texts of random lengths without end; other texts for each seed."""
        choose = random.Random(seed)
        while True:
            yield " ".join(choose.choices(self.words, k=choose.randint(self.fewest, self.most)))


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a run.

    Attributes:
        rate: open loop: requests per second at random times, independent of the server (a Poisson process). None:
            closed loop: `connections` clients, each of which sends its next request when it has the response.
        seconds: duration; requests that are due in it count.
    """

    rate: float | None
    seconds: float


class LoadRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one run.

    Attributes:
        name: unique name; it seeds the texts and the arrival times.
        connections: largest number of concurrent requests; further ones wait in this process, which adds to latency.
        phases: one or several, without a pause between them; a closed loop has one.
        warm_up_s: duration before the first phase, at its rate; in a closed loop at least until each client has a
            response.
        timeout_s: longest wait for a response after a request was due.
        deadline_ms: deadline that each request asks for; None: none.
    """

    name: str
    connections: int
    phases: list[Phase]
    warm_up_s: float
    timeout_s: float
    deadline_ms: int | None = None


class LoadSample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The measurements of one phase; lists have an entry per request, in the order in which they were due.

    Attributes:
        seconds: duration of the phase.
        due_s: when it was due, from the begin of the phase.
        took_s: time from then to the end of its response.
        late_s: part of that before it was sent; 0 in a closed loop.
        codes: HTTP status; `BROKEN`: the connection broke; `TIMED_OUT`: there was no response.
        throughput: responses with status 200 per second, during the phase.
        cpu: share of one CPU that this process used.
    """

    seconds: float
    due_s: list[float]
    took_s: list[float]
    late_s: list[float]
    codes: list[int]
    throughput: float
    cpu: float

    @property
    def latencies_s(self) -> list[float]:
        """Latencies of requests with status 200, and the timeout for each that timed out."""
        return [took for took, code in zip(self.took_s, self.codes, strict=True) if code in (200, TIMED_OUT)]

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed requests by kind: HTTP status, "time-out" or "connection"."""
        names = {TIMED_OUT: "time-out", BROKEN: "connection"}
        return Counter(names.get(code, str(code)) for code in self.codes if code != 200)


def main() -> None:
    """Run every line of standard input and write its samples."""
    address = urlsplit(sys.argv[1])
    source = msgspec.json.decode(sys.stdin.readline(), type=TextSource)
    _respond("ready")
    for line in sys.stdin:
        run = msgspec.json.decode(line, type=LoadRun)
        requests = _requests(source, run, address.netloc, address.path)
        many = any((phase.rate or _MANY) >= _MANY for phase in run.phases)
        # epoll waits for whole milliseconds, select is more precise.
        factory = uvloop.new_event_loop if many else lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
        with asyncio.Runner(loop_factory=factory) as runner:
            _respond(runner.run(_measure(run, requests, address.hostname or "", address.port or 80)))


def _respond(content: str | list[LoadSample]) -> None:
    sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
    sys.stdout.flush()


def _requests(source: TextSource, run: LoadRun, host: str, path: str) -> Iterator[bytes]:
    deadline = "" if run.deadline_ms is None else f"x-request-timeout-ms: {run.deadline_ms}\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{deadline}Content-Length: "
    for text in source.texts(run.name):
        body = msgspec.json.encode({"texts": [text]})
        yield f"{head}{len(body)}\r\n\r\n".encode() + body


async def _measure(run: LoadRun, requests: Iterator[bytes], host: str, port: int) -> list[LoadSample]:
    """Send requests for the duration of the run, and wait for all of them to end."""
    sending = Sending(requests, host, port, connections=run.connections, timeout_s=run.timeout_s)
    rates = [phase.rate for phase in run.phases if phase.rate is not None]
    seconds = [phase.seconds for phase in run.phases]
    if rates:
        marks = await sending.at_random_times(random.Random(run.name), [rates[0], *rates], [run.warm_up_s, *seconds])
    else:
        marks = await sending.one_after_another(run.warm_up_s, seconds[0])
    await sending.finish()
    return [
        _sample(sending.ended, begin, end, (used - before) / (end - begin))
        for (begin, before), (end, used) in itertools.pairwise(marks)
    ]


def _sample(ended: list[Ended], begin: float, end: float, cpu: float) -> LoadSample:
    own = sorted(one for one in ended if begin <= one.due < end)
    answered = sum(one.code == 200 and begin <= one.end < end for one in ended)
    return LoadSample(
        seconds=end - begin,
        due_s=[one.due - begin for one in own],
        took_s=[one.end - one.due for one in own],
        late_s=[one.sent - one.due for one in own],
        codes=[one.code for one in own],
        throughput=answered / (end - begin),
        cpu=cpu,
    )


if __name__ == "__main__":
    main()
