"""What a bench of a server saw -> its report: tables, plots and a verdict."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ptexport.toolkit.bench.load import Seen
from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, now, this_machine
from ptexport.toolkit.bench.serve import FEWEST, MAX_CONNECTIONS, TIMEOUT_S, Plan, Results

PERCENTILES = (50, 95, 99)
SLOW = 5  # times the p99 of a server with nothing else to do
LATE = 0.2  # of a run's p99
BUSY = 0.8  # of a CPU
GAIN = 1.2  # times one client's throughput: less is no gain


def serve_report(
    results: Results,
    plan: Plan,
    *,
    title: str,
    command: str,
    bundles: Mapping[str, str],
    threads: int,
) -> Report:
    """Say what was seen.

    Args:
        results: of a server.
        plan: how much was measured.
        title: of the page.
        command: what to type for the same.
        bundles: digests of manifests, by name.
        threads: CPUs that the server could use.
    """
    figures = {figure.name: figure for figure in _figures(results)}
    return Report(
        kind="serve",
        title=title,
        made=now(),
        command=command,
        machine=this_machine(),
        bundles=dict(bundles),
        verdict=[*_closed_verdict(results, figures), *_open_verdict(results, figures), *_doubts(results, figures)],
        how=_how(results, plan, threads),
        tables=[_closed_table(results, figures), _open_table(results, figures)],
        plots=_plots(results, figures),
        figures=list(figures.values()),
        left_out={},
    )


def _figures(results: Results) -> list[Figure]:
    calls = [len(seconds) / sum(seconds) for seconds in results.calls_s]
    figures = [Figure.of("call/throughput", calls, "/s", "higher"), *_latencies("call", results.calls_s)]
    for kind, runs in (("closed", results.closed), ("open", results.open)):
        for name, seen in runs.items():
            figures += [
                Figure.of(f"{kind}/throughput/{name}", [s.answered for s in seen], "/s", "higher"),
                *_latencies(kind, [s.latencies_s for s in seen], f"/{name}"),
                Figure.of(f"{kind}/failed/{name}", [sum(s.failures.values()) for s in seen], "requests", "lower"),
                Figure.of(f"{kind}/generator_cpu/{name}", [s.cpu for s in seen], "CPUs"),
            ]
            if kind == "open":
                figures.append(_percentile(f"open/late/{name}", [s.late_s for s in seen], 99, None))
    first = results.closed[min(results.closed)]
    more = [
        _percentile_ms(seen.latencies_s, 50) - _percentile_ms(seconds, 50)
        for seen, seconds in zip(first, results.calls_s, strict=True)
    ]
    best = results.closed[_best(results)]
    ratios = [seen.answered / alone for seen, alone in zip(best, calls, strict=True)]
    return [*figures, Figure.of("overhead/p50", more, "ms", "lower"), Figure.of("ratio/call", ratios, "x", "higher")]


def _best(results: Results) -> int:
    """At how many clients most was answered."""
    return max(results.closed, key=lambda clients: statistics.median(s.answered for s in results.closed[clients]))


def _latencies(kind: str, rounds: Sequence[Sequence[float]], of: str = "") -> list[Figure]:
    return [_percentile(f"{kind}/p{percent}{of}", rounds, percent, "lower") for percent in PERCENTILES]


def _percentile(name: str, rounds: Sequence[Sequence[float]], percent: int, better: Literal["lower"] | None) -> Figure:
    """Take a percentile of all rounds together: a round alone may have too few."""
    each = [_percentile_ms(seconds, percent) for seconds in rounds if seconds]
    together = _percentile_ms([value for seconds in rounds for value in seconds], percent)
    return Figure(name=name, value=together, low=min(each), high=max(each), unit="ms", better=better)


def _percentile_ms(seconds: Sequence[float], percent: int) -> float:
    return 1000 * float(np.percentile(seconds, percent, method="inverted_cdf"))


def _closed_table(results: Results, figures: Mapping[str, Figure]) -> Table:
    rows = [["no server", _spread(figures["call/throughput"]), *_cells(figures, "call/p{}"), ""]]
    rows += [
        [
            str(clients),
            _spread(figures[f"closed/throughput/{clients}"]),
            *_cells(figures, f"closed/p{{}}/{clients}"),
            _failed(seen),
        ]
        for clients, seen in results.closed.items()
    ]
    return Table(
        title="Closed loop: clients that ask again once they have their answer",
        columns=["clients", "answers a second", *_headings(), "failed"],
        rows=rows,
        note="No server: one caller of Engine.predict, a text at a time, the server idle. In brackets: the lowest and "
        "the highest round.",
    )


def _open_table(results: Results, figures: Mapping[str, Figure]) -> Table:
    rows = [
        [
            f"{percent} %",
            _number(results.peak * percent / 100),
            _spread(figures[f"open/throughput/{percent}"]),
            *_cells(figures, f"open/p{{}}/{percent}"),
            _failed(seen),
            _number(figures[f"open/late/{percent}"].value),
        ]
        for percent, seen in results.open.items()
    ]
    return Table(
        title="Open loop: requests come at random, whatever the server does",
        columns=["load", "due a second", "answers a second", *_headings(), "failed", "late p99, ms"],
        rows=rows,
        note=f"Load: of the {_number(results.peak)} texts a second that the closed loop got answered at most. Latency "
        "counts from when a request was due, so waiting for those before it is in it; late: how long after that the "
        "load generator came to it, which is in it too.",
    )


def _headings() -> list[str]:
    return [f"p{percent}, ms" for percent in PERCENTILES]


def _cells(figures: Mapping[str, Figure], name: str) -> list[str]:
    *most, last = (figures[name.format(percent)] for percent in PERCENTILES)
    return [*(_number(figure.value) for figure in most), _spread(last)]


def _failed(seen: Sequence[Seen]) -> str:
    return str(sum(sum(each.failures.values()) for each in seen))


def _spread(figure: Figure) -> str:
    return f"{_number(figure.value)} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _closed_verdict(results: Results, figures: Mapping[str, Figure]) -> list[str]:
    best, fewest = _best(results), min(results.closed)
    alone, one, more = figures["call/p50"], figures[f"closed/p50/{fewest}"], figures["overhead/p50"]
    gain = results.peak / figures[f"closed/throughput/{fewest}"].value
    clients = "1 client" if best == 1 else f"{best} clients"
    added = f"{_number(more.value)} ms ({_number(more.low)} to {_number(more.high)})"
    cost = f"the server adds {added}" if more.low > 0 else f"what the server adds, {added}, is within noise"
    company = (
        "the server gains by company" if gain > GAIN else "texts are computed one after another, so more only wait"
    )
    peak = (
        f"At most {_number(results.peak)} texts a second are answered, with {clients}: "
        f"{_spread(figures['ratio/call'])} times what one caller of Engine.predict gets without a server."
    )
    return [
        peak,
        f"One client waits {_number(one.value)} ms (p50), Engine.predict takes {_number(alone.value)} ms: {cost}.",
        f"The best number of clients gets {gain:.2f} times what one gets: {company}.",
    ]


def _open_verdict(results: Results, figures: Mapping[str, Figure]) -> list[str]:
    unloaded = figures[f"closed/p99/{min(results.closed)}"].value
    slow = [percent for percent in results.open if figures[f"open/p99/{percent}"].value > SLOW * unloaded]
    fine = [percent for percent in results.open if not slow or percent < slow[0]]
    said = f"{SLOW} times what one client sees ({_number(unloaded)} ms)"
    sentences = []
    if fine:
        at = _number(results.peak * max(fine) / 100)
        sentences.append(f"p99 stays within {said} up to {max(fine)} % of that peak, {at} texts a second.")
    if slow:
        p99 = _number(figures[f"open/p99/{slow[0]}"].value)
        at = _number(results.peak * slow[0] / 100)
        sentences.append(f"p99 passes {said} at {slow[0]} % of that peak, {at} texts a second: {p99} ms.")
    over = [percent for percent in results.open if percent > 100]
    if over:
        sentences.append(
            f"At {over[0]} % the queue grows for as long as requests come; its latency says how long they came."
        )
    return sentences


def _doubts(results: Results, figures: Mapping[str, Figure]) -> list[str]:
    """What failed, and where it was the load generator that was measured."""
    sentences = []
    runs = [(f"At {clients} clients", f"closed/{{}}/{clients}", seen) for clients, seen in results.closed.items()]
    runs += [(f"At {percent} %", f"open/{{}}/{percent}", seen) for percent, seen in results.open.items()]
    for where, name, seen in runs:
        failures: Counter[str] = Counter()
        for each in seen:
            failures.update(each.failures)
        if failures:
            kinds = ", ".join(f"{number} x {kind}" for kind, number in failures.items())
            asked = sum(len(each.latencies_s) for each in seen) + failures.total() - failures["time-out"]
            sentences.append(f"{where}, {failures.total()} of {asked} requests failed: {kinds}.")
        cpu, late = figures[name.format("generator_cpu")].high, figures.get(name.format("late"))
        if late is not None and late.value > LATE * figures[name.format("p99")].value:
            sentences.append(
                f"{where}, the load generator could not keep up: it came to requests {_number(late.value)} ms late "
                "(p99), which is part of the latency."
            )
        if cpu > BUSY:
            sentences.append(f"{where}, the load generator could not keep up: it took {cpu:.0%} of a CPU.")
    return sentences


def _how(results: Results, plan: Plan, threads: int) -> list[str]:
    runs = [seen for rounds in (*results.closed.values(), *results.open.values()) for seen in rounds]
    processes = (
        f"`ptexport serve` runs in a process of its own on {threads} CPUs; a load generator asks it from another, over "
        "HTTP. Both share this machine's CPUs; asking took at most "
        f"{max(seen.cpu for seen in runs):.1%} of one."
    )
    requests = (
        f"A request is a POST to /predict with one text of {results.tokens} words, one token each, the prompt not "
        "counted. No text is asked twice. Answers were compared with Engine.predict's before anything was timed."
    )
    loops = (
        f"Closed loop: {plan.closed_s:g} s for each number of clients, in turn with Engine.predict in a loop. Open "
        f"loop: {plan.open_s:g} s for each load, requests due at random (a Poisson process, seeded). {plan.rounds} "
        f"rounds of all, each run after {plan.warm_up_s:g} s of warm-up, and longer where fewer than {FEWEST} answers "
        "would come."
    )
    omission = (
        "In the open loop latency counts from when a request was due, not from when it was sent: a client that waits "
        "for a slow answer before it asks again would leave out what others had waited (coordinated omission). At most "
        f"{MAX_CONNECTIONS} are under way; others wait in the generator, first come, first served."
    )
    failures = (
        f"Failed: no answer {TIMEOUT_S:g} s after a request was due, which counts as a latency of {TIMEOUT_S:g} s; or "
        "another status than 200, or a broken connection, which count as none."
    )
    percentiles = (
        "Percentiles are of all rounds together, the nearest rank; of fewer than 100 requests p99 is the slowest. "
        "Answers a second are the median round's."
    )
    return [processes, requests, loops, omission, failures, percentiles]


def _plots(results: Results, figures: Mapping[str, Figure]) -> list[Plot]:
    def values(name: str, of: Sequence[int]) -> list[float]:
        return [figures[name.format(each)].value for each in of]

    clients, loads = list(results.closed), list(results.open)
    return [
        Plot(
            title=f"throughput against latency, {clients[0]} to {clients[-1]} clients",
            x_label="ms from asking to answer",
            y_label="answers a second",
            series=[
                Series(
                    name=f"p{percent}",
                    x=values(f"closed/p{percent}/{{}}", clients),
                    y=values("closed/throughput/{}", clients),
                )
                for percent in PERCENTILES
            ],
        ),
        Plot(
            title=f"latency against load, {loads[0]} to {loads[-1]} % of the peak",
            x_label="requests due a second",
            y_label="ms from due to answer",
            series=[
                Series(
                    name=f"p{percent}",
                    x=[results.peak * load / 100 for load in loads],
                    y=values(f"open/p{percent}/{{}}", loads),
                )
                for percent in PERCENTILES
            ],
            log_y=True,
        ),
    ]
