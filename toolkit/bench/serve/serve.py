"""A bundle -> latency and throughput of its server; server and load generator run in their own processes."""

import http.client
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BenchError, reason
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, TextSource
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts, make_texts
from ptexport.toolkit.bench.workers import Worker
from ptexport.toolkit.progress import Progress

TOKENS = 28
N_COMPARED = 8
TOLERANCE = 1e-4  # of a probability; server and bench run the same engine with one text at a time
MAX_CONNECTIONS = 256
TIMEOUT_S = 30.0
FEWEST = 20
WARM_UP = 2
PAUSE_S = 0.05  # until the threads of the other process have stopped spinning


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The settings of a serve bench.

    Attributes:
        bundle: folder of the bundle.
        threads: number of CPUs that the server may use; None: all that this process may use.
        quick: whether to measure fewer clients, rounds and seconds.
        command: command line, for the report.
    """

    bundle: Path
    threads: int | None
    quick: bool
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """How much is measured.

    Attributes:
        clients: numbers of clients in the closed loop.
        loads: loads of the open loop, in percent of the closed loop's highest throughput.
        pairs: calls of `Engine.predict` alternating with requests, per round.
        rounds: rounds of everything.
        warm_up_s: warm-up of each run.
        closed_s: duration of a closed-loop run; longer if fewer than `FEWEST` responses are expected.
        open_s: duration of an open-loop run; longer likewise.
    """

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    loads: tuple[int, ...] = (25, 50, 75, 90, 110)
    pairs: int = 15
    rounds: int
    warm_up_s: float
    closed_s: float
    open_s: float


FULL = ServePlan(rounds=3, warm_up_s=1, closed_s=5, open_s=15)
QUICK = ServePlan(clients=(1, 4, 16), rounds=2, warm_up_s=0.5, closed_s=1.5, open_s=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeResults:
    """The measurements, one entry per round.

    Attributes:
        tokens: tokens of each text without the prompt.
        pairs_s: seconds of a call of `Engine.predict` with one text, and of the request that alternates with it.
        calls_s: seconds of consecutive calls of `Engine.predict` with one text, while the server is idle.
        closed: samples of the closed loop, by number of clients.
        open: samples of the open loop, by load in percent.
        peak: highest throughput of the closed loop in texts per second, the median of its rounds.
    """

    tokens: int
    pairs_s: list[list[tuple[float, float]]]
    calls_s: list[list[float]]
    closed: dict[int, list[LoadSample]]
    open: dict[int, list[LoadSample]]
    peak: float


def measure(path: Path, plan: ServePlan, *, threads: int, progress: Progress) -> ServeResults:
    """Serve a bundle and send requests to it.

    Args:
        path: folder of the bundle.
        plan: how much is measured.
        threads: number of CPUs that the server may use.
        progress: receives the number of runs as rows.

    Raises:
        BenchError: the template takes more than one text, or the server does not start, does not respond, or predicts
            other labels or probabilities than the engine.
        BundleError: the bundle does not match its manifest, or has several tasks.
    """
    source = _source(path)
    total = plan.rounds * (1 + len(plan.clients) + len(plan.loads))
    numbers = iter(range(1, total + 1))

    def run_is_done() -> None:
        progress.rows(next(numbers), total)

    with start_server(path, threads) as server:
        address = server.receive()["url"] + "/predict"
        with start_load(address, source) as load:
            with Engine.open(path, provider="cpu", threads=threads) as engine:
                check_predictions(address, engine, make_texts(source.words, N_COMPARED, source.tokens, "compare"))
                pairs_s = [_time_pairs(address, engine, source, plan.pairs, number) for number in range(plan.rounds)]
                calls_s, closed = _closed(load, engine, source, plan, run_is_done)
            peak = max(statistics.median(s.throughput for s in samples) for samples in closed.values())
            opened = _open(load, peak, plan, run_is_done)
    return ServeResults(tokens=source.tokens, pairs_s=pairs_s, calls_s=calls_s, closed=closed, open=opened, peak=peak)


def _closed(
    load: Worker, engine: Engine, source: TextSource, plan: ServePlan, run_is_done: Callable[[], None]
) -> tuple[list[list[float]], dict[int, list[LoadSample]]]:
    """Time the engine alone, then the server with increasing numbers of clients, in each round."""
    calls: list[list[float]] = []
    closed: dict[int, list[LoadSample]] = {clients: [] for clients in plan.clients}
    for number in range(plan.rounds):
        calls.append(_time_calls(engine, source, plan, number))
        run_is_done()
        seconds = max(plan.closed_s, FEWEST * statistics.median(calls[-1]))
        for clients, samples in closed.items():
            samples.append(run_load(load, _run(plan, f"closed {clients} {number}", clients, None, seconds)))
            run_is_done()
    return calls, closed


def _open(load: Worker, peak: float, plan: ServePlan, run_is_done: Callable[[], None]) -> dict[int, list[LoadSample]]:
    opened: dict[int, list[LoadSample]] = {percent: [] for percent in plan.loads}
    for number in range(plan.rounds):
        for percent, samples in opened.items():
            rate = peak * percent / 100
            seconds = max(plan.open_s, FEWEST / rate)
            samples.append(run_load(load, _run(plan, f"open {percent} {number}", MAX_CONNECTIONS, rate, seconds)))
            run_is_done()
    return opened


def start_server(path: Path, threads: int) -> Worker:
    """Start `ptexport serve`; its first response has the URL."""
    options = ["--port", "0", "--json", "--provider", "cpu", "--threads", str(threads)]
    return Worker("ptexport serve", "ptexport.toolkit.cli.main", ["serve", str(path), *options], threads=threads)


def start_load(address: str, source: TextSource) -> Worker:
    """Start the load generator, on all CPUs, because it must run while the server's are busy."""
    worker = Worker("load", "ptexport.toolkit.bench.serve.load", [address], threads=available_cpus())
    worker.request(msgspec.to_builtins(source))
    return worker


def run_load(load: Worker, run: LoadRun) -> LoadSample:
    """Execute a run in the load generator.

    Raises:
        BenchError: no request was successful.
    """
    sample = msgspec.convert(load.request(msgspec.to_builtins(run)), LoadSample)
    if not sample.throughput or not sample.latencies_s:
        failures = ", ".join(f"{n} x {kind}" for kind, n in sample.failures.items()) or "none was due"
        raise BenchError(
            f"ptexport serve: no successful response in {run.seconds:.1f} s ({failures}); send it a request by hand"
        )
    return sample


def check_predictions(address: str, engine: Engine, texts: Sequence[str]) -> None:
    """Compare a server's predictions with the engine's, before timing.

    Raises:
        BenchError: they differ, or the server does not respond.
    """
    with _posting(address) as post:
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
def _posting(address: str) -> Iterator[Callable[[str], bytes]]:
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


def _source(path: Path) -> TextSource:
    synthetic = SyntheticTexts.of(Bundle.open(path))
    return TextSource(words=synthetic.words, tokens=min(TOKENS, synthetic.longest))


def _run(plan: ServePlan, name: str, connections: int, rate: float | None, seconds: float) -> LoadRun:
    return LoadRun(
        name=name,
        connections=connections,
        rate=rate,
        warm_up_s=plan.warm_up_s,
        seconds=seconds,
        timeout_s=TIMEOUT_S,
    )


def _time_pairs(
    address: str, engine: Engine, source: TextSource, n_pairs: int, number: int
) -> list[tuple[float, float]]:
    """Time calls and requests alternately; differences of milliseconds are lost in runs of seconds."""
    pairs: list[tuple[float, float]] = []
    with _posting(address) as post:
        systems: list[Callable[[str], object]] = [lambda text: engine.predict([text]), post]
        for pair in range(-WARM_UP, n_pairs):
            texts = make_texts(source.words, 2, source.tokens, f"pair {number} {pair}")
            seconds = [0.0, 0.0]
            for which in (0, 1) if pair % 2 else (1, 0):
                time.sleep(PAUSE_S)
                started = time.perf_counter()
                systems[which](texts[which])
                seconds[which] = time.perf_counter() - started
            if pair >= 0:
                pairs.append((seconds[0], seconds[1]))
    return pairs


def _time_calls(engine: Engine, source: TextSource, plan: ServePlan, number: int) -> list[float]:
    """Time consecutive calls of the engine with one text each."""
    seconds: list[float] = []
    begin = time.perf_counter() + plan.warm_up_s
    for call in itertools.count():
        texts = make_texts(source.words, 1, source.tokens, f"call {number} {call}")
        started = time.perf_counter()
        if started >= begin + plan.closed_s and len(seconds) >= FEWEST:
            break
        engine.predict(texts)
        if started >= begin:
            seconds.append(time.perf_counter() - started)
    return seconds
