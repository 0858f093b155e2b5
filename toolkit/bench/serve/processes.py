"""A bundle -> its server and a load generator, each a process."""

import http.client
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BenchError, reason
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, TextSource
from ptexport.toolkit.bench.serve.plan import TIMEOUT_S
from ptexport.toolkit.bench.workers import Worker

TOLERANCE = 1e-4  # of a probability; server and bench run the same engine with one text at a time
_WATCH_S = 0.05


def start_server(path: Path, threads: int, *options: str) -> Worker:
    """Start `ptexport serve`; its first response has the URL."""
    given = ["--port", "0", "--json", "--provider", "cpu", "--threads", str(threads), *options]
    return Worker("ptexport serve", "ptexport.toolkit.cli.main", ["serve", str(path), *given], threads=threads)


def start_load(address: str, source: TextSource) -> Worker:
    """Start the load generator, on all CPUs, because it must run while the server's are busy."""
    worker = Worker("load", "ptexport.toolkit.bench.serve.load", [address], threads=available_cpus())
    worker.request(msgspec.to_builtins(source))
    return worker


def run_load(load: Worker, run: LoadRun) -> list[LoadSample]:
    """Execute a run in the load generator, and return a sample per phase.

    Raises:
        BenchError: no request of the first phase was successful. Later ones may be above the server's capacity.
    """
    samples = msgspec.convert(load.request(msgspec.to_builtins(run)), list[LoadSample])
    first = samples[0]
    if not first.throughput or not first.latencies_s:
        failures = ", ".join(f"{n} x {kind}" for kind, n in first.failures.items()) or "none was due"
        seconds = run.phases[0].seconds
        raise BenchError(
            f"ptexport serve: no successful response in {seconds:.1f} s ({failures}); send it a request by hand"
        )
    return samples


def check_predictions(address: str, engine: Engine, texts: Sequence[str]) -> None:
    """Compare a server's predictions with the engine's, before timing.

    Raises:
        BenchError: they differ, or the server does not respond.
    """
    with posting(address) as post:
        for text, expected in zip(texts, engine.predict(texts), strict=True):
            (prediction,) = msgspec.json.decode(post(text))["predictions"]
            pairs = zip(prediction["probabilities"].values(), expected.probabilities.values(), strict=True)
            difference = max(abs(theirs - ours) for theirs, ours in pairs)
            if prediction["label"] != expected.label or difference > TOLERANCE:
                raise BenchError(
                    "ptexport serve: its label differs from Engine.predict's, or a probability does "
                    f"(by {difference:.2g}); a server with other predictions is not timed"
                )


@contextmanager
def posting(address: str) -> Iterator[Callable[[str], bytes]]:
    """Open a connection, and yield a function that posts a text and returns the response."""
    where = urlsplit(address)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)) as connection:

        def post(text: str) -> bytes:
            try:
                connection.request("POST", where.path, msgspec.json.encode({"texts": [text]}))
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as e:
                raise BenchError(f"ptexport serve: no response ({reason(e)}); send it a request by hand") from e
            if response.status != 200:
                raise BenchError(f"ptexport serve: got status {response.status}, need 200; send it a request by hand")
            return body

        yield post


def resident_mb(pid: int) -> float | None:
    """Return the resident memory of a process; None on systems other than Linux."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1])
    except FileNotFoundError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process; None on systems other than Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def most_resident_mb(pid: int) -> Iterator[list[float]]:
    """Watch the resident memory of a process; yield a list of what was seen."""
    seen: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while True:
            if (now := resident_mb(pid)) is not None:
                seen.append(now)
            if done.wait(_WATCH_S):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
