"""A server -> its throughput with batches and without, and what becomes of it above its capacity."""

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ptexport.runtime.engine.engine import Engine
from ptexport.toolkit.bench.serve.load import LoadRun, LoadSample, Phase, TextSource
from ptexport.toolkit.bench.serve.plan import (
    BEST_TEXTS,
    DEADLINE_MS,
    MAX_OVERLOAD_CONNECTIONS,
    OVERLOAD_TIMEOUT_S,
    SATURATING,
    TIMEOUT_S,
    Overload,
    Saturation,
    ServePlan,
)
from ptexport.toolkit.bench.serve.processes import (
    cpu_seconds,
    most_resident_mb,
    resident_mb,
    run_load,
    start_load,
    start_server,
)
from ptexport.toolkit.bench.workers import Worker

_SETTLED_S = 2.0  # after an overload, until memory is measured


def measure_saturation(
    path: Path,
    server: tuple[Worker, str],
    engine: Engine,
    source: TextSource,
    plan: ServePlan,
    *,
    threads: int,
    seconds: float,
    run_is_done: Callable[[], None],
) -> Saturation:
    """Compare a server's throughput with `Engine.predict` and with a server of one text at a time, in turns.

    Args:
        path: folder of the bundle.
        server: the process of the server, and its address.
        engine: an engine of the same bundle.
        source: the texts of all three.
        plan: rounds and warm-up.
        threads: number of CPUs that each may use.
        seconds: duration of each run.
        run_is_done: called after each run.
    """
    worker, address = server
    measured = Saturation(lengths=(source.fewest, source.most), best=[], batched=[], single=[], server_cpus=[])
    with ExitStack() as stack:
        single = stack.enter_context(start_server(path, threads, "--max-batch-tokens", "1"))
        loads = [
            stack.enter_context(start_load(one, source)) for one in (address, single.receive()["url"] + "/predict")
        ]
        for number in range(plan.rounds):
            name = f"saturation {number}"
            run = LoadRun(
                name=name,
                connections=SATURATING,
                phases=[Phase(rate=None, seconds=seconds)],
                warm_up_s=plan.warm_up_s,
                timeout_s=TIMEOUT_S,
            )
            measured.best.append(_best_throughput(engine, source, seconds, name))
            run_is_done()
            samples, cpus = _watched(worker.pid, loads[0], run)
            measured.batched.extend(samples)
            measured.server_cpus.append(cpus)
            run_is_done()
            measured.single.extend(run_load(loads[1], run))
            run_is_done()
    return measured


def _best_throughput(engine: Engine, source: TextSource, seconds: float, name: str) -> float:
    """Measure `Engine.predict` on the texts of a run, many per call."""
    texts = source.texts(name)
    engine.predict(list(itertools.islice(texts, SATURATING)))
    n, started = 0, time.perf_counter()
    while not n or time.perf_counter() - started < seconds:
        n += len(engine.predict(list(itertools.islice(texts, BEST_TEXTS))))
    return n / (time.perf_counter() - started)


def _watched(pid: int, load: Worker, run: LoadRun) -> tuple[list[LoadSample], float | None]:
    """Run a load, and measure how many CPUs the server uses meanwhile, its warm-up included."""
    before, started = cpu_seconds(pid), time.perf_counter()
    samples = run_load(load, run)
    after, seconds = cpu_seconds(pid), time.perf_counter() - started
    return samples, None if before is None or after is None else (after - before) / seconds


def measure_overload(server: Worker, load: Worker, peak: float, factor: int, plan: ServePlan) -> Overload:
    """Send more requests than a server can answer, each with a deadline; before and after, half as many as it can.

    Args:
        server: the process of the server.
        load: the load generator.
        peak: capacity in texts per second.
        factor: multiple of it.
        plan: durations.
    """
    half = peak / 2
    run = LoadRun(
        name=f"overload {factor}",
        connections=MAX_OVERLOAD_CONNECTIONS,
        phases=[
            Phase(rate=half, seconds=plan.calm_s),
            Phase(rate=peak * factor, seconds=plan.overload_s),
            Phase(rate=half, seconds=plan.after_s),
        ],
        warm_up_s=plan.warm_up_s,
        timeout_s=OVERLOAD_TIMEOUT_S,
        deadline_ms=DEADLINE_MS,
    )
    before = resident_mb(server.pid)
    with most_resident_mb(server.pid) as seen:
        calm, over, after = run_load(load, run)
    time.sleep(_SETTLED_S)
    settled = resident_mb(server.pid)
    memory = None if before is None or settled is None else (before, max(seen), settled)
    return Overload(calm=calm, over=over, after=after, resident_mb=memory)
