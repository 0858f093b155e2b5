"""What a bench of a server saw -> its report: tables, plots and a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ptexport.toolkit.bench.report import Figure, Plot, Report, Series, Table, now, this_machine
from ptexport.toolkit.bench.serve.figures import PERCENTILES, best_clients, figures_of
from ptexport.toolkit.bench.serve.load import Seen
from ptexport.toolkit.bench.serve.serve import FEWEST, MAX_CONNECTIONS, PAUSE_S, TIMEOUT_S, Plan, Results

SLOW = 5  # times the p99 of a server with nothing else to do
GROWS = 1.5  # times the latency at the end of a run, where the queue grows
LATE = 0.2  # of a run's p99
BUSY = 0.8  # of a CPU


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
    figures = figures_of(results)
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
            f"{percent}\N{NO-BREAK SPACE}%",
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
    best, fewest = best_clients(results), min(results.closed)
    call, request, more = (figures[name] for name in ("turns/call", "turns/request", "overhead/p50"))
    gain = results.peak / figures[f"closed/throughput/{fewest}"].value
    clients = "1 client" if best == 1 else f"{best} clients"
    added = f"{_number(more.value)} ms ({_number(more.low)} to {_number(more.high)})"
    cost = f"HTTP adds {added}" if more.low > 0 else f"what HTTP adds, {added}, is within noise"
    peak = (
        f"At most {_number(results.peak)} texts a second are answered, with {clients}: "
        f"{_spread(figures['ratio/throughput'])} times what one caller of Engine.predict gets without a server."
    )
    turns = (
        f"Asked in turn, the server takes {_number(request.value)} ms and Engine.predict {_number(call.value)} ms "
        f"(medians): {cost}."
    )
    return [
        peak,
        turns,
        f"More clients get at most {gain:.2f} times as much answered as one; beyond that they wait for each other.",
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
    return sentences + [_queue(percent, results, figures) for percent in results.open if percent > 100]


def _queue(percent: int, results: Results, figures: Mapping[str, Figure]) -> str:
    """Tell whether more waited at the end of a run than when it began."""
    first, last = (figures[f"open/{third}_third/{percent}"].value for third in ("first", "last"))
    answered, due = figures[f"open/throughput/{percent}"].value, results.peak * percent / 100
    seen = (
        f"median latency was {_number(first)} ms in the first third of a run and {_number(last)} ms in the last, and "
        f"{_number(answered)} of {_number(due)} texts a second were answered"
    )
    if last > GROWS * first:
        return f"At {percent} % the queue grew: {seen}; latency there says how long requests came."
    return f"At {percent} % no queue grew: {seen}; the closed loop's peak is not the most that this server answers."


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
        f"ptexport serve runs in a process of its own on {threads} CPUs; a load generator asks it from another, over "
        "HTTP. Both share this machine's CPUs; asking took at most "
        f"{max(seen.cpu for seen in runs):.1%} of one."
    )
    requests = (
        f"A request is a POST to /predict with one text of {results.tokens} words, one token each, the prompt not "
        "counted. No text is asked twice. Answers were compared with Engine.predict's before anything was timed."
    )
    turns = (
        f"What HTTP adds: {plan.turns} times a round, the bench's own process calls Engine.predict and asks the server "
        f"in turn, {PAUSE_S:g} s apart, so that one's threads have stopped spinning before the other begins."
    )
    loops = (
        f"Closed loop: {plan.closed_s:g} s for each number of clients, and as long for Engine.predict in a loop. Open "
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
    return [processes, requests, turns, loops, omission, failures, percentiles]


def _plots(results: Results, figures: Mapping[str, Figure]) -> list[Plot]:
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
            x_label="ms from asking to answer",
            y_label="answers a second",
            series=[Series(name=name, x=[p.value for p in points], y=throughput) for name, points in closed.items()],
        ),
        Plot(
            title="latency against load, open loop",
            x_label="requests due a second",
            y_label="ms from due to answer",
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
