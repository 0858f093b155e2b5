"""Results of inspect, doctor and cache -> tables on standard output."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.toolkit.cli.tables import table_of

if TYPE_CHECKING:
    from ptexport.exporters.inspect.summary import GraphSummary
    from ptexport.toolkit.evaluation.doctor import Check
    from ptexport.toolkit.evaluation.provider_report import ProviderReport
    from ptexport.toolkit.store.cache import Entry


def print_description(record: dict[str, Any]) -> None:
    """Print the description of a bundle or run."""
    console = Console()
    _print_facts(console, record["kind"], record)
    for task in record.get("tasks", ()):
        _print_facts(console, "task", task)


def _print_facts(console: Console, kind: str, record: dict[str, Any]) -> None:
    """Print the description of a bundle, a run or a task of a bundle."""
    table = Table(show_header=False)
    for name, value in record.items():
        if name not in ("nearest_words", "template_tokens", "structure", "kind", "name", "golden", "tasks"):
            table.add_row(name, escape(_brief(value)))
    console.print(f"{kind} {record['name']}", markup=False, highlight=False)
    console.print(table)
    if "template_tokens" not in record:  # its tasks have their own
        return
    pieces = [
        f"{{{piece}}}" if isinstance(piece, str) else f"{piece[0]}={piece[1]}" for piece in record["template_tokens"]
    ]
    console.print(f"tokens: {'  '.join(pieces)}", markup=False, highlight=False, soft_wrap=True)
    for row, words in enumerate(record["nearest_words"] or [], record.get("first_virtual_token", 0)):
        near = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in words)
        console.print(f"[P {row}] is nearest to {near}", markup=False, highlight=False, soft_wrap=True)
    if record["nearest_words"] is None and "warning" not in record:
        console.print("nearest words: pip install 'ptexport[train]' to see them", markup=False)


def print_summary(summary: "GraphSummary | None") -> None:
    """Print the summary of a graph; None: the package that reads graphs is not installed."""
    console = Console()
    if summary is None:
        console.print("parts of the graph: pip install 'ptexport[train]' to see them", markup=False)
        return
    table = table_of("part", "parameters", "MB", "MFLOP per token")
    totals: dict[str, list[int]] = {}
    for part in summary.parts:
        for name in (part.name, "all"):
            total = totals.setdefault(name, [0, 0, 0])
            totals[name] = [a + b for a, b in zip(total, (part.parameters, part.size_bytes, part.flops), strict=True)]
    totals["all"] = totals.pop("all")
    for name, (parameters, size, flops) in totals.items():
        layers = f", {summary.layers} layers" if name in ("attention", "mlp") else ""
        cost = "?" if summary.flops is None else f"{flops / summary.length / 1e6:,.3f}"
        table.add_row(name + layers, f"{parameters:,}", f"{size / 1e6:,.3f}", cost)
    console.print(table)
    for line in (
        f"inputs: {_sizes(summary.inputs)}; outputs: {_sizes(summary.outputs)}",
        f"operators: {', '.join(f'{count} {kind}' for kind, count in summary.operators.items())}",
        _cost(summary),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    if isinstance(value, dict):
        if "size_bytes" in value:
            return f"{value['size_bytes'] / 1e6:.3f} MB"
        return "\n".join(f"{name}: {_brief(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_checks(checks: list["Check"]) -> None:
    """Print the checks of a machine."""
    table = Table(show_header=False)
    for check in checks:
        mark = "[green]ok[/green]" if check.missing is None else "[yellow]missing[/yellow]"
        table.add_row(mark, check.name, escape(check.found + (f"\n{check.missing}" if check.missing else "")))
    Console().print(table)


def print_report(report: "ProviderReport") -> None:
    """Print how a bundle runs on each execution provider."""
    gpu = report.gpu
    device = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU"
    sizes = [(timing.texts, timing.words) for timing in report.outcomes[0].timings]
    table = table_of(
        "provider", "opened", "golden rows", "among others", *(f"{n} x {words} words" for n, words in sizes)
    )
    for outcome in report.outcomes:
        if outcome.info is None or outcome.open_s is None or outcome.among_neighbours is None:
            table.add_row(outcome.provider, "[red]does not run it[/]")
            continue
        times = (f"{timing.median_ms:.1f} ms" for timing in outcome.timings)
        golden = f"{outcome.info.golden_max_abs_diff:.1e}"
        table.add_row(outcome.provider, f"{outcome.open_s:.1f} s", golden, f"{outcome.among_neighbours:.1e}", *times)
    console = Console()
    console.print(f"{report.bundle}, for {report.target} in {report.precision}, on {report.machine}; {device}")
    console.print(table)
    for outcome in report.outcomes:
        if outcome.error is not None:
            console.print(f"{outcome.provider}: {outcome.error}", highlight=False, markup=False)


def print_entries(entries: list["Entry"], *, removed: bool) -> None:
    """Print the entries of the cache, or the removed ones."""
    table = table_of("entry", "MB", "days unused", title="removed" if removed else None)
    for entry in entries:
        table.add_row(escape(str(entry.path)), f"{entry.size_bytes / 1e6:.0f}", f"{entry.unused_days:.1f}")
    table.add_row("all", f"{sum(entry.size_bytes for entry in entries) / 1e6:.0f}", "")
    Console().print(table)
