"""Results of inspect, doctor and cache -> tables on standard output."""

from typing import TYPE_CHECKING, Any

from ptexport.runtime.cache_dir import cache_home
from ptexport.toolkit.tables import print_table, say

if TYPE_CHECKING:
    from ptexport.exporters.inspect.summary import GraphSummary
    from ptexport.toolkit.evaluation.doctor import Check
    from ptexport.toolkit.evaluation.provider_report import ProviderReport
    from ptexport.toolkit.store.cache import Entry


_SHOWN_APART = ("nearest_words", "template_tokens", "structure", "kind", "name", "golden", "tasks")


def print_description(record: dict[str, Any]) -> None:
    """Print the description of a bundle or run."""
    _print_facts(record["kind"], record)
    for task in record.get("tasks", ()):
        say("")
        _print_facts("task", task)


def _print_facts(kind: str, record: dict[str, Any]) -> None:
    """Print the description of a bundle, a run or a task of a bundle."""
    facts = [line for name, value in record.items() if name not in _SHOWN_APART for line in _facts(name, value)]
    print_table((), facts, title=f"{kind} {record['name']}")
    if "template_tokens" not in record:  # its tasks have their own
        return
    pieces = [
        f"{{{piece}}}" if isinstance(piece, str) else f"{piece[0]}={piece[1]}" for piece in record["template_tokens"]
    ]
    say(f"tokens: {'  '.join(pieces)}")
    for row, words in enumerate(record["nearest_words"] or [], record.get("first_virtual_token", 0)):
        near = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in words)
        say(f"[P {row}] is nearest to {near}")
    if record["nearest_words"] is None and "warning" not in record:
        say("nearest words: pip install 'ptexport[train]' to see them")


def _facts(name: str, value: object, indent: str = "") -> list[list[str]]:
    """List a value as rows of a name and a value; the values inside a dictionary are indented below it."""
    shown = indent + name
    if isinstance(value, dict) and "size_bytes" in value:
        return [[shown, f"{value['size_bytes'] / 1e6:.3f} MB"]]
    if isinstance(value, dict) and value:
        return [[shown, ""], *(line for key, inner in value.items() for line in _facts(str(key), inner, indent + "  "))]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [[shown, ""], *([f"{indent}  {next(iter(i.values()))}", _brief(i)] for i in value)]
    return [[shown, _brief(value)]]


def print_summary(summary: "GraphSummary | None") -> None:
    """Print the summary of a graph; None: the package that reads graphs is not installed."""
    if summary is None:
        say("parts of the graph: pip install 'ptexport[train]' to see them")
        return
    rows = []
    totals: dict[str, list[int]] = {}
    for part in summary.parts:
        for name in (part.name, "all"):
            total = totals.setdefault(name, [0, 0, 0])
            totals[name] = [a + b for a, b in zip(total, (part.parameters, part.size_bytes, part.flops), strict=True)]
    totals["all"] = totals.pop("all")
    for name, (parameters, size, flops) in totals.items():
        layers = f", {summary.layers} layers" if name in ("attention", "mlp") else ""
        cost = "?" if summary.flops is None else f"{flops / summary.length / 1e6:,.3f}"
        rows.append([name + layers, f"{parameters:,}", f"{size / 1e6:,.3f}", cost])
    say("")
    columns = ("part", "parameters", "size (MB)", "MFLOP per token")
    print_table(columns, rows, title="Parts of the graph", highlight=len(rows) - 1)
    for line in (
        f"inputs: {_sizes(summary.inputs)}; outputs: {_sizes(summary.outputs)}",
        f"operators: {', '.join(f'{count} {kind}' for kind, count in summary.operators.items())}",
        _cost(summary),
    ):
        say(line)


def _sizes(values: dict[str, list[int | str]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, size))}]" for name, size in values.items())


def _cost(summary: "GraphSummary") -> str:
    if summary.flops is None or summary.score_flops is None or summary.saved_flops is None:
        return f"FLOPs: unknown, since onnx cannot infer output sizes of {', '.join(summary.unknown)}"
    scores = summary.score_flops / summary.flops
    saved = summary.saved_flops / (summary.flops + summary.saved_flops)
    line = (
        f"a row of {summary.length} tokens takes {summary.flops / 1e9:.3g} GFLOP in products, {scores:.1%} of them in"
    )
    line += " attention between tokens"
    return line + (f"; one position of the last layer alone saves {saved:.1%}" if saved else "")


def _brief(value: object) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, dict):  # its first value names it
        return ", ".join(_brief(inner) for inner in list(value.values())[1:])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_brief, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_checks(checks: list["Check"]) -> None:
    """Print the checks of a machine."""
    missing = [check.name for check in checks if check.missing is not None]
    say(f"Missing: {', '.join(missing)}." if missing else "Nothing is missing.", style="bold")
    rows = [
        ["missing", check.name, f"{check.found}\n{check.missing}"] if check.missing else ["ok", check.name, check.found]
        for check in checks
    ]
    print_table((), rows, styles=["yellow" if check.missing else "green" for check in checks])


def print_report(report: "ProviderReport") -> None:
    """Print how a bundle runs on each execution provider."""
    gpu = report.gpu
    device = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU"
    sizes = [(timing.texts, timing.words) for timing in report.outcomes[0].timings]
    rows = []
    for outcome in report.outcomes:
        if outcome.info is None or outcome.open_s is None or outcome.among_neighbours is None:
            rows.append([outcome.provider, "fails", *[""] * (2 + len(sizes))])
            continue
        differences = f"{outcome.info.golden_max_abs_diff:.1e}", f"{outcome.among_neighbours:.1e}"
        latencies = (f"{timing.median_ms:.1f}" for timing in outcome.timings)
        rows.append([outcome.provider, f"{outcome.open_s:.1f}", *differences, *latencies])
    runs = [outcome.provider for outcome in report.outcomes if outcome.info is not None]
    say(f"{report.bundle} runs on {', '.join(runs) or 'no provider'} ({report.machine}; {device}).", style="bold")
    latencies_of = (f"latency, {n} x {words} words (ms)" for n, words in sizes)
    columns = ("provider", "opened (s)", "golden rows |Δlogit|", "among others |Δlogit|", *latencies_of)
    print_table(columns, rows, title=f"For {report.target}, in {report.precision}")
    for outcome in report.outcomes:
        if outcome.error is not None:
            say(f"{outcome.provider}: {outcome.error}")


def print_entries(entries: list["Entry"], *, removed: bool) -> None:
    """Print the entries of the cache, or the removed ones."""
    home = cache_home()
    rows = [
        [str(entry.path.relative_to(home)), f"{entry.size_bytes / 1e6:.0f}", f"{entry.unused_days:.1f}"]
        for entry in entries
    ]
    rows.append(["all", f"{sum(entry.size_bytes for entry in entries) / 1e6:.0f}", ""])
    columns = ("entry", "size (MB)", "days unused")
    print_table(columns, rows, title=f"Removed from {home}" if removed else str(home), highlight=len(rows) - 1)
