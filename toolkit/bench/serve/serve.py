"""A bundle -> latency and throughput of its server; server and load generator run in their own processes."""

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.engine.engine import Engine
from ptexport.toolkit.bench.serve.limits import measure_overload, measure_saturation
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, Phase, TextSource
from ptexport.toolkit.bench.serve.plan import (
    FEWEST,
    FEWEST_TOKENS,
    MAX_CONNECTIONS,
    MOST_TOKENS,
    SATURATING,
    TIMEOUT_S,
    TOKENS,
    Saturation,
    ServePlan,
    ServeResults,
    Turn,
)
from ptexport.toolkit.bench.serve.processes import check_predictions, posting, run_load, start_load, start_server
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts
from ptexport.toolkit.bench.workers import Worker
from ptexport.toolkit.progress import Progress

N_COMPARED = 8
IN_A_ROW = 16
PAUSE_S = 0.05  # until the threads of the other process have stopped spinning


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
    one_length, mixed_lengths = sources = _sources(path)
    total = plan.rounds * (1 + len(plan.clients) + len(plan.loads) + 3 * len(sources)) + len(plan.overloads)
    numbers = iter(range(1, total + 1))

    def run_is_done() -> None:
        progress.rows(next(numbers), total)

    with ExitStack() as stack:
        server = stack.enter_context(start_server(path, threads))
        address = server.receive()["url"] + "/predict"
        load = stack.enter_context(start_load(address, one_length))
        with Engine.open(path, provider="cpu", threads=threads) as engine:
            check_predictions(address, engine, list(itertools.islice(mixed_lengths.texts("compare"), N_COMPARED)))
            turns = [_time_turns(address, engine, one_length, plan.turns, number) for number in range(plan.rounds)]
            calls_s, closed = _closed(load, engine, one_length, plan, run_is_done)
            saturations: list[Saturation] = [
                measure_saturation(
                    path,
                    (server, address),
                    engine,
                    source,
                    plan,
                    threads=threads,
                    seconds=max(plan.closed_s, 2 * SATURATING * statistics.median(calls_s[0])),
                    run_is_done=run_is_done,
                )
                for source in sources
            ]
        peak = max(statistics.median(s.throughput for s in samples) for samples in closed.values())
        opened = _open(load, peak, plan, run_is_done)
        overloads = {}
        for factor in plan.overloads:
            overloads[factor] = measure_overload(server, load, peak, factor, plan)
            run_is_done()
    return ServeResults(
        tokens=one_length.most,
        turns=turns,
        calls_s=calls_s,
        closed=closed,
        open=opened,
        peak=peak,
        saturations=saturations,
        overloads=overloads,
    )


def _sources(path: Path) -> tuple[TextSource, TextSource]:
    """Return texts of one length, and texts of mixed lengths."""
    synthetic = SyntheticTexts.of(Bundle.open(path))
    one, fewest, most = (min(n, synthetic.longest) for n in (TOKENS, FEWEST_TOKENS, MOST_TOKENS))
    return (
        TextSource(words=synthetic.words, fewest=one, most=one),
        TextSource(words=synthetic.words, fewest=fewest, most=most),
    )


def _closed(
    load: Worker, engine: Engine, source: TextSource, plan: ServePlan, run_is_done: Callable[[], None]
) -> tuple[list[list[float]], dict[int, list[LoadSample]]]:
    """Time the engine alone, then the server with increasing numbers of clients, in each round."""
    calls: list[list[float]] = []
    closed: dict[int, list[LoadSample]] = {clients: [] for clients in plan.clients}
    for number in range(plan.rounds):
        calls.append(_time_calls(engine, source, plan, number))
        run_is_done()
        for clients, samples in closed.items():
            # Many clients get their responses together, after a batch of all.
            seconds = max(plan.closed_s, max(FEWEST, 2 * clients) * statistics.median(calls[-1]))
            samples += run_load(load, _run(plan, f"closed {clients} {number}", clients, None, seconds))
            run_is_done()
    return calls, closed


def _open(load: Worker, peak: float, plan: ServePlan, run_is_done: Callable[[], None]) -> dict[int, list[LoadSample]]:
    opened: dict[int, list[LoadSample]] = {percent: [] for percent in plan.loads}
    for number in range(plan.rounds):
        for percent, samples in opened.items():
            rate = peak * percent / 100
            seconds = max(plan.open_s, FEWEST / rate)
            samples += run_load(load, _run(plan, f"open {percent} {number}", MAX_CONNECTIONS, rate, seconds))
            run_is_done()
    return opened


def _run(plan: ServePlan, name: str, connections: int, rate: float | None, seconds: float) -> LoadRun:
    return LoadRun(
        name=name,
        connections=connections,
        phases=[Phase(rate=rate, seconds=seconds)],
        warm_up_s=plan.warm_up_s,
        timeout_s=TIMEOUT_S,
    )


def _time_turns(address: str, engine: Engine, source: TextSource, n_turns: int, number: int) -> list[Turn]:
    """Time calls and requests in turns; differences of milliseconds are lost in runs of seconds."""
    turns: list[Turn] = []
    given = source.texts(f"turn {number}")
    with posting(address) as post:
        systems: list[Callable[[str], object]] = [lambda text: engine.predict([text]), post]
        for turn in range(-1, n_turns):  # the first one warms up
            seconds: list[list[float]] = [[], []]
            for which in (0, 1) if turn % 2 else (1, 0):
                time.sleep(PAUSE_S)
                for text in itertools.islice(given, IN_A_ROW):
                    started = time.perf_counter()
                    systems[which](text)
                    seconds[which].append(time.perf_counter() - started)
            if turn >= 0:
                turns.append(Turn(calls_s=seconds[0], requests_s=seconds[1]))
    return turns


def _time_calls(engine: Engine, source: TextSource, plan: ServePlan, number: int) -> list[float]:
    """Time consecutive calls of the engine with one text each."""
    seconds: list[float] = []
    begin = time.perf_counter() + plan.warm_up_s
    for text in source.texts(f"call {number}"):
        started = time.perf_counter()
        if started >= begin + plan.closed_s and len(seconds) >= FEWEST:
            break
        engine.predict([text])
        if started >= begin:
            seconds.append(time.perf_counter() - started)
    return seconds
