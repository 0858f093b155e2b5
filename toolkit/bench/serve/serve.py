"""A server in a process of its own, and another that asks it -> what was seen; load.py is what asks."""

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
from ptexport.toolkit.bench.serve.load import Run, Seen, Texts
from ptexport.toolkit.bench.texts import PlainTexts, make_texts
from ptexport.toolkit.bench.workers import Worker

TOKENS = 28
COMPARED = 8
TOLERANCE = 1e-4  # of a probability: it is the same engine, asked for one text at a time in both places
MAX_CONNECTIONS = 256
TIMEOUT_S = 30.0
FEWEST = 20
WARM_UP = 2
PAUSE_S = 0.05  # until the threads of the one before have stopped spinning


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        clients: of the closed loop, each asking again once it has its answer.
        loads: of the open loop, in percent of the most that the closed loop got answered.
        turns: of the engine and the server, in each round.
        rounds: of all.
        warm_up_s: before anything counts, in each run.
        closed_s: that count in a run of the closed loop; more, where fewer than `FEWEST` answers are to be expected.
        open_s: likewise, of the open loop.
    """

    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    loads: tuple[int, ...] = (25, 50, 75, 90, 110)
    turns: int = 15
    rounds: int
    warm_up_s: float
    closed_s: float
    open_s: float


FULL = Plan(rounds=3, warm_up_s=1, closed_s=5, open_s=15)
QUICK = Plan(clients=(1, 4, 16), rounds=2, warm_up_s=0.5, closed_s=1.5, open_s=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was seen, round by round.

    Attributes:
        tokens: of each text, the prompt not counted.
        pairs_s: seconds of a call of `Engine.predict` with one text, and of a request in turn with it.
        calls_s: seconds of calls of `Engine.predict` with one text, one after another, the server idle.
        closed: by clients.
        open: by load, in percent.
        peak: texts a second that the closed loop got answered at most; the median round's.
    """

    tokens: int
    pairs_s: list[list[tuple[float, float]]]
    calls_s: list[list[float]]
    closed: dict[int, list[Seen]]
    open: dict[int, list[Seen]]
    peak: float


def measure(path: Path, plan: Plan, *, threads: int, report: Callable[[int, int], None]) -> Results:
    """Serve a bundle and ask it.

    Args:
        path: the bundle.
        plan: how much.
        threads: CPUs that the server may use.
        report: told how many runs are done, of how many.

    Raises:
        BenchError: the template takes more than one text; or the server does not come up, answers otherwise than the
            engine, or not at all.
        BundleError: the bundle is not what its manifest says.
    """
    texts = _texts(path)
    total = plan.rounds * (1 + len(plan.clients) + len(plan.loads))
    numbers = iter(range(1, total + 1))

    def run_is_done() -> None:
        report(next(numbers), total)

    with start_server(path, threads) as server:
        address = server.read()["url"] + "/predict"
        with start_load(address, texts) as load:
            with Engine.open(path, provider="cpu", threads=threads) as engine:
                check_answers(address, engine, make_texts(texts.words, COMPARED, texts.tokens, "compare"))
                pairs_s = [_take_turns(address, engine, texts, plan.turns, number) for number in range(plan.rounds)]
                calls_s, closed = _closed(load, engine, texts, plan, run_is_done)
            peak = max(statistics.median(s.answered for s in seen) for seen in closed.values())
            opened = _open(load, peak, plan, run_is_done)
    return Results(tokens=texts.tokens, pairs_s=pairs_s, calls_s=calls_s, closed=closed, open=opened, peak=peak)


def _closed(
    load: Worker, engine: Engine, texts: Texts, plan: Plan, run_is_done: Callable[[], None]
) -> tuple[list[list[float]], dict[int, list[Seen]]]:
    """Time the engine alone, then the server with more and more clients; and again."""
    calls: list[list[float]] = []
    closed: dict[int, list[Seen]] = {clients: [] for clients in plan.clients}
    for number in range(plan.rounds):
        calls.append(_time_calls(engine, texts, plan, number))
        run_is_done()
        seconds = max(plan.closed_s, FEWEST * statistics.median(calls[-1]))
        for clients, seen in closed.items():
            seen.append(ask(load, _run(plan, f"closed {clients} {number}", clients, None, seconds)))
            run_is_done()
    return calls, closed


def _open(load: Worker, peak: float, plan: Plan, run_is_done: Callable[[], None]) -> dict[int, list[Seen]]:
    opened: dict[int, list[Seen]] = {percent: [] for percent in plan.loads}
    for number in range(plan.rounds):
        for percent, seen in opened.items():
            rate = peak * percent / 100
            seconds = max(plan.open_s, FEWEST / rate)
            seen.append(ask(load, _run(plan, f"open {percent} {number}", MAX_CONNECTIONS, rate, seconds)))
            run_is_done()
    return opened


def start_server(path: Path, threads: int) -> Worker:
    """Start `ptexport serve`; the line to read from it says where it listens."""
    options = ["--port", "0", "--json", "--provider", "cpu", "--threads", str(threads)]
    return Worker("ptexport serve", "ptexport.toolkit.cli.main", ["serve", str(path), *options], threads=threads)


def start_load(address: str, texts: Texts) -> Worker:
    """Start what asks: load.py; on all CPUs, since it has to run while the server's are busy."""
    worker = Worker("load", "ptexport.toolkit.bench.serve.load", [address], threads=available_cpus())
    worker.ask(msgspec.to_builtins(texts))
    return worker


def ask(load: Worker, run: Run) -> Seen:
    """Have a run made.

    Raises:
        BenchError: nothing was answered.
    """
    seen = msgspec.convert(load.ask(msgspec.to_builtins(run)), Seen)
    if not seen.answered or not seen.latencies_s:
        said = ", ".join(f"{n} x {what}" for what, n in seen.failures.items()) or "none was due"
        raise BenchError(f"ptexport serve: answered nothing in {run.seconds:.1f} s ({said}); ask it by hand")
    return seen


def check_answers(address: str, engine: Engine, texts: Sequence[str]) -> None:
    """Compare a server's answers with the engine's, before anything is timed.

    Raises:
        BenchError: they differ, or do not come.
    """
    with _posting(address) as post:
        for text, expected in zip(texts, engine.predict(texts), strict=True):
            (answer,) = msgspec.json.decode(post(text))["predictions"]
            pairs = zip(answer["probabilities"].values(), expected.probabilities.values(), strict=True)
            difference = max(abs(theirs - ours) for theirs, ours in pairs)
            if answer["label"] != expected.label or difference > TOLERANCE:
                raise BenchError(
                    f"ptexport serve: its label or a probability (by {difference:.2g}) is not Engine.predict's; "
                    "what answers otherwise is not timed"
                )


@contextmanager
def _posting(address: str) -> Iterator[Callable[[str], bytes]]:
    """Connect; what is yielded posts a text and returns the answer."""
    where = urlsplit(address)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)) as connection:

        def post(text: str) -> bytes:
            try:
                connection.request("POST", where.path, msgspec.json.encode({"texts": [text]}))
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as e:
                raise BenchError(f"ptexport serve: does not answer ({reason(e)}); ask it by hand") from e
            if response.status != 200:
                raise BenchError(f"ptexport serve: got status {response.status}, need 200; ask it by hand")
            return body

        yield post


def _texts(path: Path) -> Texts:
    plain = PlainTexts.of(Bundle.open(path))
    return Texts(words=plain.words, tokens=min(TOKENS, plain.longest))


def _run(plan: Plan, name: str, connections: int, rate: float | None, seconds: float) -> Run:
    return Run(
        name=name,
        connections=connections,
        rate=rate,
        warm_up_s=plan.warm_up_s,
        seconds=seconds,
        timeout_s=TIMEOUT_S,
    )


def _take_turns(address: str, engine: Engine, texts: Texts, turns: int, number: int) -> list[tuple[float, float]]:
    """Ask the engine and the server in turn, another first each time: what a window of seconds would blur shows."""
    pairs: list[tuple[float, float]] = []
    with _posting(address) as post:
        systems: list[Callable[[str], object]] = [lambda text: engine.predict([text]), post]
        for turn in range(-WARM_UP, turns):
            some = make_texts(texts.words, 2, texts.tokens, f"turn {number} {turn}")
            seconds = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                time.sleep(PAUSE_S)
                started = time.perf_counter()
                systems[which](some[which])
                seconds[which] = time.perf_counter() - started
            if turn >= 0:
                pairs.append((seconds[0], seconds[1]))
    return pairs


def _time_calls(engine: Engine, texts: Texts, plan: Plan, number: int) -> list[float]:
    """Ask the engine itself, one text after another."""
    seconds: list[float] = []
    begin = time.perf_counter() + plan.warm_up_s
    for call in itertools.count():
        some = make_texts(texts.words, 1, texts.tokens, f"call {number} {call}")
        started = time.perf_counter()
        if started >= begin + plan.closed_s and len(seconds) >= FEWEST:
            break
        engine.predict(some)
        if started >= begin:
            seconds.append(time.perf_counter() - started)
    return seconds
