"""Measurements of a server -> its report: tables, plots and a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.toolkit.bench.ratio import LatencyRatio
from ptexport.toolkit.bench.report import BenchReport, Figure, Table, now, this_machine
from ptexport.toolkit.bench.serve import plan as plans
from ptexport.toolkit.bench.serve import serve
from ptexport.toolkit.bench.serve.figures import PERCENTILES, best_clients, figures_of
from ptexport.toolkit.bench.serve.limits_report import (
    limits_problems,
    limits_tables,
    limits_verdict,
)
from ptexport.toolkit.bench.serve.load import LoadSample
from ptexport.toolkit.bench.serve.plan import ServeConfig, ServePlan, ServeResults
from ptexport.toolkit.bench.serve.plots import plots_of
from ptexport.toolkit.bench.serve.wording import in_words, number, spread
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
    plan = plans.QUICK if config.quick else plans.FULL
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
        verdict=[
            *_closed_verdict(results, figures),
            *limits_verdict(results, figures),
            *_open_verdict(results, figures),
            *_problems(results, figures),
            *limits_problems(results, figures),
        ],
        how=_method(results, plan, threads),
        tables=[
            *limits_tables(results, figures),
            _closed_table(results, figures),
            _open_table(results, figures),
        ],
        plots=plots_of(results, figures),
        figures=list(figures.values()),
        left_out={},
    )


def _closed_table(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = [["no server", spread(figures["call/throughput"]), *_latencies(figures, "call/p{}"), ""]]
    rows += [
        [
            str(clients),
            spread(figures[f"closed/throughput/{clients}"]),
            *_latencies(figures, f"closed/p{{}}/{clients}"),
            _failed(samples),
        ]
        for clients, samples in results.closed.items()
    ]
    return Table(
        title="Closed loop: each client sends its next request when it has the response",
        columns=["clients", "throughput (texts/s)", *_latency_headings(), "failed"],
        rows=rows,
        note="No server: one caller of Engine.predict with one text per call, while the server is idle. In brackets: "
        "the lowest and the highest round.",
    )


def _open_table(results: ServeResults, figures: Mapping[str, Figure]) -> Table:
    rows = [
        [
            f"{percent}\N{NO-BREAK SPACE}%",
            number(results.peak * percent / 100),
            spread(figures[f"open/throughput/{percent}"]),
            *_latencies(figures, f"open/p{{}}/{percent}"),
            _failed(samples),
            number(figures[f"open/late/{percent}"].value),
        ]
        for percent, samples in results.open.items()
    ]
    return Table(
        title="Open loop: requests arrive at random times, independently of the server",
        columns=["load", "due (texts/s)", "throughput (texts/s)", *_latency_headings(), "failed", "late p99 (ms)"],
        rows=rows,
        note=f"Load: percentage of the closed loop's highest throughput, {number(results.peak)} texts/s. Latency "
        "starts when a request was due, so it includes queueing. Late: delay of a request in the load generator "
        "after it was due, which the latency includes.",
    )


def _latency_headings() -> list[str]:
    return [f"latency p{percent} (ms)" for percent in PERCENTILES]


def _latencies(figures: Mapping[str, Figure], name: str) -> list[str]:
    *most, last = (figures[name.format(percent)] for percent in PERCENTILES)
    return [*(number(figure.value) for figure in most), spread(last)]


def _failed(samples: Sequence[LoadSample]) -> str:
    return str(sum(sum(each.failures.values()) for each in samples))


def _closed_verdict(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    best, fewest = best_clients(results), min(results.closed)
    call, request, added, ratio = (
        figures[name] for name in ("turns/call", "turns/request", "overhead/p50", "ratio/p50")
    )
    http = LatencyRatio.between(ratio.value, ratio.low, ratio.high)
    latencies = f"{number(request.value)} ms instead of {number(call.value)} ms, measured alternately"
    compared = (
        f"A request over HTTP and Engine.predict show no measurable difference in latency ({http.interval})"
        if http.word == "same"
        else f"A request over HTTP is {http.words} than Engine.predict ({http.interval})"
    )
    p99 = figures[f"closed/p99/{best}"]
    gain = results.peak / figures[f"closed/throughput/{fewest}"].value
    return [
        (
            f"The server's highest throughput is {spread(figures[f'closed/throughput/{best}'])} texts/s, with "
            f"{in_words(best)} and a p99 latency of {number(p99.value)} ms."
        ),
        (
            f"One caller of Engine.predict, without a server, has a throughput of "
            f"{spread(figures['call/throughput'])} texts/s; the ratio is {spread(figures['ratio/throughput'])}."
        ),
        (
            f"{compared}: {latencies}; the difference is {spread(added)} ms in the median and "
            f"{number(figures['overhead/p99'].value)} ms at p99, where calls alone differ by "
            f"{number(figures['overhead/calls/p99'].value)} ms; after a pause it is "
            f"{spread(figures['overhead/first/p50'])} ms in the median."
        ),
        f"With more clients the throughput rises to {gain:.2f} times that of {in_words(fewest)}, then no further."
        if best != fewest
        else f"More clients than {fewest} do not raise the throughput.",
    ]


def _open_verdict(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    unloaded = figures[f"closed/p99/{min(results.closed)}"].value
    slow = [percent for percent in results.open if figures[f"open/p99/{percent}"].value > SLOW * unloaded]
    fine = [percent for percent in results.open if not slow or percent < slow[0]]
    limit = f"{number(SLOW * unloaded)} ms ({SLOW} times that of one client)"
    sentences = []
    if fine:
        rate = number(results.peak * max(fine) / 100)
        sentences.append(f"The p99 latency stays below {limit} up to a load of {max(fine)} %, {rate} texts/s.")
    if slow:
        p99 = number(figures[f"open/p99/{slow[0]}"].value)
        rate = number(results.peak * slow[0] / 100)
        sentences.append(f"The p99 latency is {p99} ms at a load of {slow[0]} %, {rate} texts/s, above {limit}.")
    return sentences + [_queue(percent, results, figures) for percent in results.open if percent > 100]


def _queue(percent: int, results: ServeResults, figures: Mapping[str, Figure]) -> str:
    """State whether the queue grew during a run."""
    first, last = (figures[f"open/{third}_third/{percent}"].value for third in ("first", "last"))
    throughput, due = figures[f"open/throughput/{percent}"].value, results.peak * percent / 100
    found = (
        f"the median latency was {number(first)} ms in the first third of a run and {number(last)} ms in the last, "
        f"at a throughput of {number(throughput)} of {number(due)} texts/s"
    )
    if last > GROWS * first:
        return f"At a load of {percent} % the queue grew: {found}. Latency there depends on the duration of the run."
    return f"At a load of {percent} % no queue grew: {found}. The server can exceed the closed loop's throughput."


def _problems(results: ServeResults, figures: Mapping[str, Figure]) -> list[str]:
    """State which requests failed, and where the load generator was the bottleneck."""
    sentences = []
    runs = [(f"At {in_words(clients)}", f"closed/{{}}/{clients}", s) for clients, s in results.closed.items()]
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
                f"{bottleneck}: it sent requests {number(late.value)} ms late (p99), which the latency includes."
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
            f"Latency that HTTP adds: in each round, {plan.turns} times, {serve.IN_A_ROW} calls of Engine.predict in a "
            f"row and as many requests; in between a pause of {serve.PAUSE_S:g} s, so that the threads of one have "
            "stopped spinning. The second half of each row counts, and the first of each as the one after a pause."
        ),
        (
            f"Closed loop: {plan.closed_s:g} s per number of clients, and as long for Engine.predict in a loop. Open "
            f"loop: {plan.open_s:g} s per load, requests due at random times (a seeded Poisson process). There are "
            f"{plan.rounds} rounds of everything. Each run has a warm-up of {plan.warm_up_s:g} s, and is longer if "
            f"fewer than {plans.FEWEST} responses are expected."
        ),
        (
            f"Saturation: {plans.SATURATING} clients, in turns with Engine.predict and with a second server. Overload: "
            f"{plan.calm_s:g} s at half the capacity, {plan.overload_s:g} s above it, {plan.after_s:g} s at half, "
            f"without a pause; at most {plans.MAX_OVERLOAD_CONNECTIONS} requests are concurrent, once per load."
        ),
        (
            "Open-loop latency starts when a request was due, not when it was sent: a client that waits for a slow "
            "response before its next request would hide the queueing of others (coordinated omission). At most "
            f"{plans.MAX_CONNECTIONS} requests are concurrent; further ones wait in the load generator, first come, "
            "first served."
        ),
        (
            f"Failed requests: no response {plans.TIMEOUT_S:g} s after a request was due, which counts as a latency of "
            f"{plans.TIMEOUT_S:g} s; or a status other than 200 or a broken connection, which do not count as "
            "latencies."
        ),
        (
            "Percentiles are over all rounds, nearest rank; with fewer than 100 requests p99 is the slowest. "
            "Throughput is the median of the rounds."
        ),
    ]
