"""Clients that never rest, and what a server's process is made of: for tests in a short form and for hours."""

import http.client
import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from servers import start

GOLDEN = Path(__file__).parent / "golden" / "format-2" / "reviews"
WORDS = ["film", "bright", "dull", "story", "slow", "great", "the", "a", "was", "very"]


class Server:
    """`ptexport serve` in a process of its own, and the events that it logs.

    Args:
        arguments: of the command.
        code: run before it.
        stderr: where its log goes; a pipe: `events` has it.
    """

    def __init__(self, *arguments: object, code: str = "", stderr: IO[str] | int = subprocess.PIPE) -> None:
        self.process, record = start(*arguments, code=code, stderr=stderr)
        self.url: str = record["url"]
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.events.append(json.loads(line))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def wait(self) -> int:
        """Wait for its end and for all that it has logged."""
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def state(self) -> tuple[float, int, int]:
        """Return its resident memory in MB, and the numbers of its descriptors and threads."""
        at = Path(f"/proc/{self.process.pid}")
        pages = int((at / "statm").read_text().split()[1])
        descriptors, threads = (sum(1 for _ in (at / name).iterdir()) for name in ("fd", "task"))
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, descriptors, threads


@contextmanager
def server(*arguments: object, **given: Any) -> Iterator[Server]:
    running = Server(*arguments, **given)
    try:
        yield running
    finally:
        running.process.kill()
        running.wait()
        for stream in (running.process.stdout, running.process.stderr):
            if stream is not None:
                stream.close()


class Clients:
    """Threads that send one request after another until they are stopped, and count what becomes of them.

    Args:
        url: of the server.
        n: number of clients.
        tasks: each request is for one of them.
        pause_s: of each client between requests.

    Attributes:
        outcomes: statuses; "refused": there was no connection, "broken": a request was sent and has no whole answer.
        took: end and seconds of each answered request.
        errors: sentences of failed requests.
    """

    def __init__(self, url: str, n: int, *, tasks: tuple[str, ...] = ("reviews",), pause_s: float = 0.0) -> None:
        self.outcomes: Counter[int | str] = Counter()
        self.took: list[tuple[float, float]] = []
        self.errors: list[str] = []
        self._url, self._tasks, self._pause_s = urlsplit(url), tasks, pause_s
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(n)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self.wait()

    def wait(self) -> None:
        """Wait until each is stopped or finds no server."""
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        choose = random.Random(number)
        while not self._stopping.is_set():
            connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=60)
            try:
                connection.connect()
            except OSError:
                self.outcomes["refused"] += 1
                return
            try:
                self._use(connection, choose)
            except (OSError, http.client.HTTPException):
                self.outcomes["broken"] += 1
            finally:
                connection.close()

    def _use(self, connection: http.client.HTTPConnection, choose: random.Random) -> None:
        """Send requests until the server closes the connection."""
        while not self._stopping.wait(self._pause_s):
            texts = [" ".join(choose.choices(WORDS, k=choose.randint(1, 12))) for _ in range(choose.choice([1, 1, 3]))]
            body = json.dumps({"texts": texts, "task": choose.choice(self._tasks)})
            started = time.monotonic()
            connection.request("POST", "/predict", body)
            response = connection.getresponse()
            answer = response.read()
            now = time.monotonic()
            self.outcomes[response.status] += 1
            if response.status == 200:
                self.took.append((now, now - started))
            else:
                self.errors.append(answer.decode())
            if response.will_close:
                return


def ask(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request and return the status and the decoded JSON."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


def wait_for(what: Any, seconds: float = 20) -> float:
    """Wait until a function returns true; returns the seconds."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, "not within the time"
        time.sleep(0.01)
    return time.monotonic() - started


def slope_per_hour(samples: list[tuple[float, float]]) -> float:
    """Return the slope per hour of (seconds, value), by least squares."""
    seconds, values = np.array(samples).T
    return float(np.polyfit(seconds - seconds[0], values, 1)[0] * 3600)
