"""Measurements of a server -> its report: tables, plots and a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.report import BenchReport, Figure, Plot, Series, Table, now, this_machine
from ptexport.toolkit.bench.serve import serve
from ptexport.toolkit.bench.serve.figures import PERCENTILES, best_clients, figures_of
from ptexport.toolkit.bench.serve.load import LoadSample
from ptexport.toolkit.bench.serve.serve import ServeConfig, ServePlan, ServeResults
from ptexport.toolkit.progress import Progress

SLOW = 5  # times the p99 of a server with one client
GROWS = 1.5  # ratio of latency at the end of a run to that at its begin, above which the queue grows
LATE = 0.2  # of a run's p99
BUSY = 0.8  # of a CPU


def bench_serve(config: ServeConfig, progress: Progress) -> BenchReport:
    """Measure the server of a bundle.

    Args:
        config: settings.
        progress: receives the number of runs as rows.

    Raises:
        BenchError: as `serve.measure`.
        BundleError: as `serve.measure`.
    """
    manifest = Bundle.open(config.bundle).manifest
    threads = min(config.threads or available_cpus(), available_cpus())
    plan = serve.QUICK if config.quick else serve.FULL
    progress.stage("opening the bundle")
    return serve_report(
        serve.measure(config.bundle, plan, threads=threads, progress=progress),
        plan,
        title=f"{manifest.name}: serve",
        command=config.command,
        bundles={f"{manifest.name}, {manifest.graph.precision}": manifest.digest},
        threads=threads,
    )


def serve_report(
    results: ServeResults,
    plan: ServePlan,
    *,
    title: str,
    command: str,
    bundles: Mapping[str, str],
    threads: int,
) -> BenchReport:
    """Make the report of a serve bench.

    Args:
        results: measurements of a server.
        plan: how much was measured.
        title: title of the page.
        command: command line that made the report.
        bundles: manifest digests, by name.
        threads: number of CPUs that the server could use.
    """
    figures = figures_of(results)
    return BenchReport(
        kind="serve",
        title=title,
        made=now(),
        command=command,
        machine=this_machine(),
        bundles=dict(bundles),
        verdict=[*_closed_verdict(results, figures), *_open_verdict(results, figures), *_problems(results, figures)],
        how=_method(results, plan, threads),
        tables=[_closed_table(results, figures), _open_table(results, figures)],
        plots=_plots(results, figures),
        figures=list(figures.values()),
        left_out={},
    )


def _closed_table(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = [["no server", _spread(figures["call/throughput"]), *_latencies(figures, "call/p{}"), ""]]
    rows += [
        [
            str(clients),
            _spread(figures[f"closed/throughput/{clients}"]),
            *_latencies(figures, f"closed/p{{}}/{clients}"),
            _failed(samples),
        ]
        for clients, samples in results.closed.items()
    ]
    return Table(
        title="Closed loop: each client sends its next request when it has the response",
        columns=["clients", "throughput, texts/s", *_latency_headings(), "failed"],
        rows=rows,
        note="No server: one caller of Engine.predict with one text per call, while the server is idle. In brackets: "
        "the lowest and the highest round.",
    )


def _open_table(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = [
        [
            f"{percent}\N{NO-BREAK SPACE}%",
            _number(results.peak * percent / 100),
            _spread(figures[f"open/throughput/{percent}"]),
            *_latencies(figures, f"open/p{{}}/{percent}"),
            _failed(samples),
            _number(figures[f"open/late/{percent}"].value),
        ]
        for percent, samples in results.open.items()
    ]
    return Table(
        title="Open loop: requests arrive at random times, independently of the server",
        columns=["load", "due, texts/s", "throughput, texts/s", *_latency_headings(), "failed", "late p99, ms"],
        rows=rows,
        note=f"Load: percentage of the closed loop's highest throughput, {_number(results.peak)} texts/s. Latency "
        "starts when a request was due, so it includes queueing. Late: delay of a request in the load generator "
        "after it was due, which the latency includes.",
    )


def _latency_headings() -> list[str]:
    return [f"latency p{percent}, ms" for percent in PERCENTILES]


def _latencies(figures: Mapping[str, Figure], name: str) -> list[str]:
    *most, last = (figures[name.format(percent)] for percent in PERCENTILES)
    return [*(_number(figure.value) for figure in most), _spread(last)]


def _failed(samples: Sequence[LoadSample]) -> str:
    return str(sum(sum(each.failures.values()) for each in samples))


def _spread(figure: Figure) -> str:
    return f"{_number(figure.value)} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _closed_verdict(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    best, fewest = best_clients(results), min(results.closed)
    call, request, added = (figures[name] for name in ("turns/call", "turns/request", "overhead/p50"))
    gain = results.peak / figures[f"closed/throughput/{fewest}"].value
    noise = "" if added.low > 0 else ", which is within noise"
    return [
        (
            f"The highest throughput is {_number(results.peak)} texts/s, with {_clients(best)}: "
            f"{_spread(figures['ratio/throughput'])} times that of one caller of Engine.predict without a server."
        ),
        (
            f"Measured alternately, the median latency is {_number(request.value)} ms over HTTP and "
            f"{_number(call.value)} ms for Engine.predict: HTTP adds {_spread(added)} ms{noise}."
        ),
        (
            f"More clients increase the throughput up to {gain:.2f} times that of {_clients(fewest)}; beyond that, "
            "requests wait for each other."
        ),
    ]


def _clients(n: int) -> str:
    return "1 client" if n == 1 else f"{n} clients"


def _open_verdict(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    unloaded = figures[f"closed/p99/{min(results.closed)}"].value
    slow = [percent for percent in results.open if figures[f"open/p99/{percent}"].value > SLOW * unloaded]
    fine = [percent for percent in results.open if not slow or percent < slow[0]]
    limit = f"{SLOW} times the p99 with one client ({_number(unloaded)} ms)"
    sentences = []
    if fine:
        rate = _number(results.peak * max(fine) / 100)
        sentences.append(f"The p99 latency stays below {limit} up to a load of {max(fine)} %, {rate} texts/s.")
    if slow:
        p99 = _number(figures[f"open/p99/{slow[0]}"].value)
        rate = _number(results.peak * slow[0] / 100)
        sentences.append(f"The p99 latency exceeds {limit} at a load of {slow[0]} %, {rate} texts/s: {p99} ms.")
    return sentences + [_queue(percent, results, figures) for percent in results.open if percent > 100]


def _queue(percent: int, results: ServeResults, figures: Mapping[str, Figure]) -> str:
    """State whether the queue grew during a run."""
    first, last = (figures[f"open/{third}_third/{percent}"].value for third in ("first", "last"))
    throughput, due = figures[f"open/throughput/{percent}"].value, results.peak * percent / 100
    found = (
        f"the median latency was {_number(first)} ms in the first third of a run and {_number(last)} ms in the last, "
        f"at a throughput of {_number(throughput)} of {_number(due)} texts/s"
    )
    if last > GROWS * first:
        return f"At a load of {percent} % the queue grew: {found}. Latency there depends on the duration of the run."
    return f"At a load of {percent} % no queue grew: {found}. The server can exceed the closed loop's throughput."


def _problems(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    """State which requests failed, and where the load generator was the bottleneck."""
    sentences = []
    runs = [(f"At {_clients(clients)}", f"closed/{{}}/{clients}", s) for clients, s in results.closed.items()]
    runs += [
        (f"At a load of {percent} %", f"open/{{}}/{percent}", samples) for percent, samples in results.open.items()
    ]
    for where, name, samples in runs:
        failures: Counter[str] = Counter()
        for each in samples:
            failures.update(each.failures)
        if failures:
            kinds = ", ".join(f"{number} x {kind}" for kind, number in failures.items())
            total = sum(len(each.latencies_s) for each in samples) + failures.total() - failures["time-out"]
            sentences.append(f"{where}, {failures.total()} of {total} requests failed: {kinds}.")
        cpu, late = figures[name.format("generator_cpu")].high, figures.get(name.format("late"))
        bottleneck = f"{where}, the load generator could not keep up"
        if late is not None and late.value > LATE * figures[name.format("p99")].value:
            sentences.append(
                f"{bottleneck}: it sent requests {_number(late.value)} ms late (p99), which the latency includes."
            )
        if cpu > BUSY:
            sentences.append(f"{bottleneck}: it used {cpu:.0%} of a CPU.")
    return sentences


def _method(results: ServeResults, plan: ServePlan, threads: int) -> list[str]:
    runs = [sample for rounds in (*results.closed.values(), *results.open.values()) for sample in rounds]
    generator_cpu = max(sample.cpu for sample in runs)
    return [
        (
            f"`ptexport serve` runs in its own process on {threads} CPUs. A load generator sends HTTP requests from "
            f"another process on the same machine; it used at most {generator_cpu:.1%} of a CPU."
        ),
        (
            f"A request is a POST to /predict with one text of {results.tokens} words, one token each, without the "
            "prompt. No text occurs twice. Before timing, the server's predictions were compared with those of "
            "Engine.predict."
        ),
        (
            f"Latency that HTTP adds: in each round, {plan.pairs} calls of Engine.predict alternate with requests, "
            f"{serve.PAUSE_S:g} s apart, so that the threads of one have stopped spinning before the other starts."
        ),
        (
            f"Closed loop: {plan.closed_s:g} s per number of clients, and as long for Engine.predict in a loop. Open "
            f"loop: {plan.open_s:g} s per load, requests due at random times (a seeded Poisson process). There are "
            f"{plan.rounds} rounds of everything. Each run has a warm-up of {plan.warm_up_s:g} s, and is longer if "
            f"fewer than {serve.FEWEST} responses are expected."
        ),
        (
            "Open-loop latency starts when a request was due, not when it was sent: a client that waits for a slow "
            "response before its next request would hide the queueing of others (coordinated omission). At most "
            f"{serve.MAX_CONNECTIONS} requests are concurrent; further ones wait in the load generator, first come, "
            "first served."
        ),
        (
            f"Failed requests: no response {serve.TIMEOUT_S:g} s after a request was due, which counts as a latency of "
            f"{serve.TIMEOUT_S:g} s; or a status other than 200 or a broken connection, which do not count as "
            "latencies."
        ),
        (
            "Percentiles are over all rounds, nearest rank; with fewer than 100 requests p99 is the slowest. "
            "Throughput is the median of the rounds."
        ),
    ]


def _plots(results: ServeResults, figures: Mapping[str, Figure]) -> list[Plot]:
    def of(name: str, runs: Sequence[int]) -> list[Figure]:
        return [figures[name.format(run)] for run in runs]

    clients, loads = list(results.closed), list(results.open)
    throughput = [figure.value for figure in of("closed/throughput/{}", clients)]
    closed, opened = (
        {f"p{percent}": of(f"{kind}/p{percent}/{{}}", runs) for percent in PERCENTILES}
        for kind, runs in (("closed", clients), ("open", loads))
    )
    due = [results.peak * load / 100 for load in loads]
    return [
        Plot(
            title=f"throughput against latency, {clients[0]} to {clients[-1]} clients",
            x_label="latency, ms",
            y_label="throughput, texts/s",
            series=[Series(name=name, x=[p.value for p in points], y=throughput) for name, points in closed.items()],
        ),
        Plot(
            title="latency against load, open loop",
            x_label="due, texts/s",
            y_label="latency, ms",
            series=[
                Series(
                    name=name,
                    x=due,
                    y=[p.value for p in points],
                    low=[p.low for p in points],
                    high=[p.high for p in points],
                )
                for name, points in opened.items()
            ],
            log_y=True,
        ),
    ]
