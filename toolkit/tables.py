"""What people see when a command is done: tables on standard output."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ptexport.runtime.manifest import Candidate, Comparison, Manifest, TasksManifest
from ptexport.toolkit.evaluate import UNSURE, Contrast, Evaluation, headings, summary

if TYPE_CHECKING:
    from ptexport.exporters.summary import GraphSummary
    from ptexport.toolkit.cache import Entry
    from ptexport.toolkit.checkup import Report
    from ptexport.toolkit.doctor import Check
    from ptexport.toolkit.run import Run  # it needs the extra `train`
    from ptexport.toolkit.sweep import Outcome


def _table(*headers: str, title: str | None = None) -> Table:
    """Make a table of names, in the first column, and figures."""
    table = Table(title=None if title is None else escape(title), title_justify="left")
    for number, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if number else "left")
    return table


def print_metrics(run: "Run", out: Path) -> None:
    """Print what a training came to."""
    metrics = run.metrics
    assert metrics is not None, "it was trained"
    table = Table(title=f"accuracy on {metrics.n_test} test rows", title_justify="left")
    table.add_column("template")
    table.add_column("method")
    table.add_column("accuracy", justify="right")
    for template, accuracy in sorted(metrics.manual_accuracy.items(), key=lambda item: item[1]):
        table.add_row(escape(template), "hand-written", f"{accuracy:.1%}")
    table.add_row(escape(run.config.template), metrics.method, f"{metrics.test_accuracy:.1%}", style="bold")
    console = Console()
    console.print(table)
    console.print(
        f"{out}: {metrics.trainable_parameters:,} parameters trained on {metrics.n_train} rows in "
        f"{metrics.train_seconds:.0f} s, dev accuracy {metrics.dev_accuracy:.1%}",
        markup=False,
        highlight=False,
    )
    if metrics.found_words is not None:
        console.print(f"found the words {', '.join(metrics.found_words)}", markup=False, highlight=False)
        if metrics.manual_accuracy and metrics.test_accuracy <= statistics.median(metrics.manual_accuracy.values()):
            console.print("which is no better than the median hand-written template", markup=False, highlight=False)


def print_import(run: "Run", out: Path) -> None:
    """Print how an imported run compares with where it came from."""
    imported = run.config.imported
    assert imported is not None, "it was imported"
    labels = "a vocabulary" if run.config.open_answers else ", ".join(run.config.labels)
    Console().print(
        f"{out}: {imported.peft_type} for {imported.task_type} on {run.config.model}, labels {labels}; "
        f"largest difference of a logit from PEFT's over {imported.rows} rows "
        f"{imported.max_abs_diff:.1e}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def print_outcomes(outcomes: list["Outcome"], out: Path) -> None:
    """Print the runs of a sweep, the best first."""
    table = _table("run", "dev accuracy", "test accuracy", "epochs", "seconds")
    for outcome in outcomes:
        if outcome.failed is None:
            figures = f"{outcome.dev_accuracy:.1%}", f"{outcome.test_accuracy:.1%}", str(outcome.epochs)
            table.add_row(escape(outcome.name), *figures, f"{outcome.train_seconds:.0f}")
        else:
            table.add_row(escape(outcome.name), "failed", "-", "-", "-")
    console = Console()
    console.print(table)
    for outcome in outcomes:
        if outcome.failed is not None:
            console.print(f"{outcome.name}: {outcome.failed}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}/best is {outcomes[0].name}, chosen by dev accuracy", markup=False, highlight=False)


def print_parity(manifest: Manifest, out: Path) -> None:
    """Print how a bundle compares with the model it came from."""
    parity, lowered = manifest.parity, manifest.graph.lowered
    console = Console()
    if parity is None:
        console.print("not run: ONNX Runtime's CPU provider has no products in bf16", markup=False, highlight=False)
    else:
        headers = ("batches", "largest |Δlogit|", "mean |Δlogit|", "labels that differ")
        table = _table(*headers, title=f"{parity.rows} rows against untouched Transformers")
        for name, result in (
            ("each row alone", parity.alone),
            ("mixed, padded right", parity.padded_right),
            ("mixed, padded left", parity.padded_left),
        ):
            table.add_row(name, *_figures(result))
        for name, largest in (
            ("texts of any length", parity.all_lengths),
            ("the graph with itself, among 64 others", parity.among_neighbours),
        ):
            if largest is not None:
                table.add_row(name, f"{largest:.1e}", "", "")
        console.print(table)
    if lowered is not None and lowered.accuracy is not None:
        accuracy = f"{lowered.accuracy:.1%} of {lowered.rows} rows right, {lowered.accuracy_fp32:.1%} in fp32"
        kept = f"; in fp32: {', '.join(lowered.kept_fp32)}" if lowered.kept_fp32 else ""
        console.print(f"{manifest.graph.precision}: {accuracy}{kept}", markup=False, highlight=False, soft_wrap=True)
    if manifest.graph.tuned:
        console.print(_timings(manifest.graph.tuned))
    size = sum(entry.size_bytes for entry in manifest.files.values())
    console.print(
        f"{out}: {size / 1e6:.0f} MB, for {manifest.graph.target}, opset {manifest.graph.opset}, "
        f"{manifest.graph.folded_tokens} leading tokens folded into constants",
        markup=False,
        highlight=False,
    )


def _timings(candidates: list[Candidate]) -> Table:
    sizes = [f"{timing.batch} x {timing.tokens}" for timing in candidates[0].timings]
    table = _table("graph", *sizes, "labels", title="median ms of rows x tokens on this machine, in turn")
    for candidate in candidates:
        figures = [f"{timing.median_ms:.1f}" for timing in candidate.timings]
        table.add_row(f"opset {candidate.opset}", *figures, "the same" if candidate.same_labels else "differ")
    return table


def print_tasks(manifest: TasksManifest, out: Path) -> None:
    """Print what a bundle of many tasks holds and how each compares with the model it came from."""
    headers = ("task", "labels", "rows", "largest |Δlogit|", "all tasks of a row")
    table = _table(*headers, title="Rows of all tasks together against untouched Transformers")
    for task in manifest.tasks:
        parity = task.parity
        worst = max(result.max_abs_diff for result in (parity.alone, parity.padded_right, parity.padded_left))
        together = "-" if task.fan_out is None else f"{task.fan_out.max_abs_diff:.1e}"
        table.add_row(task.name, ", ".join(task.labels), str(parity.rows), f"{worst:.1e}", together)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    reading = "one reading of a text answers all" if manifest.fan_out else "a text is read once per task"
    console = Console()
    console.print(table)
    made = f"for {manifest.target}, opset {manifest.opset}, {len(manifest.tasks)} tasks; {reading}"
    console.print(f"{out}: {size / 1e6:.0f} MB, {made}", markup=False, highlight=False)


def _figures(result: Comparison) -> tuple[str, str, str]:
    return f"{result.max_abs_diff:.1e}", f"{result.mean_abs_diff:.1e}", str(len(result.flips))


def print_evaluations(evaluations: list[Evaluation], contrast: Contrast | None) -> None:
    """Print one bundle's figures, or two side by side."""
    names = headings(evaluations)
    table = _table("", *names, title=f"{evaluations[0].n_rows} rows")
    figures = [summary(evaluation) for evaluation in evaluations]
    for name in figures[0]:
        table.add_row(name, *(figure[name] for figure in figures))
    console = Console()
    console.print(table)
    for name, evaluation in zip(names, evaluations, strict=True):
        console.print(_confusion(name, evaluation))
        if evaluation.worst:
            console.print(_worst(name, evaluation))
    if any(evaluation.coverage < 1 for evaluation in evaluations):
        console.print(UNSURE, markup=False, highlight=False)
    if contrast is not None:
        console.print(
            f"the two agree on {contrast.agreement:.1%} of the rows; where they do not, the first is right on "
            f"{contrast.only_first_right}, the second on {contrast.only_second_right} "
            f"(rows {', '.join(map(str, contrast.differing[:10])) or 'none'}{' …' * (len(contrast.differing) > 10)})",
            markup=False,
            highlight=False,
        )


def print_description(record: dict[str, Any]) -> None:
    """Print what is in a bundle or run."""
    table = Table(show_header=False)
    for name, value in record.items():
        if name not in ("nearest_words", "template_tokens", "structure", "kind", "name", "golden"):
            table.add_row(name, escape(_brief(value)))
    console = Console()
    console.print(f"{record['kind']} {record['name']}", markup=False, highlight=False)
    console.print(table)
    pieces = [
        f"{{{piece}}}" if isinstance(piece, str) else f"{piece[0]}={piece[1]}" for piece in record["template_tokens"]
    ]
    console.print(f"tokens: {'  '.join(pieces)}", markup=False, highlight=False, soft_wrap=True)
    for row, words in enumerate(record["nearest_words"] or []):
        near = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in words)
        console.print(f"[P {row}] is nearest to {near}", markup=False, highlight=False, soft_wrap=True)
    if record["nearest_words"] is None and "warning" not in record:
        console.print("nearest words: pip install 'ptexport[train]' to see them", markup=False)


def print_summary(summary: "GraphSummary | None") -> None:
    """Print what a graph is made of; None: it could not be read here."""
    console = Console()
    if summary is None:
        console.print("parts of the graph: pip install 'ptexport[train]' to see them", markup=False)
        return
    table = _table("part", "parameters", "MB", "MFLOP a token")
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
    for said in (
        f"inputs: {_sizes(summary.inputs)}; outputs: {_sizes(summary.outputs)}",
        f"operators: {', '.join(f'{count} {kind}' for kind, count in summary.operators.items())}",
        _cost(summary),
    ):
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def _sizes(values: dict[str, list[int | str]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, size))}]" for name, size in values.items())


def _cost(summary: "GraphSummary") -> str:
    if summary.flops is None or summary.score_flops is None or summary.saved_flops is None:
        return f"FLOPs: not known, for onnx cannot tell the sizes that {', '.join(summary.unknown)} give"
    scores = summary.score_flops / summary.flops
    saved = summary.saved_flops / (summary.flops + summary.saved_flops)
    said = (
        f"a row of {summary.length} tokens takes {summary.flops / 1e9:.3g} GFLOP in products, {scores:.1%} of them in"
    )
    said += " attention between tokens"
    return said + (f"; one position of the last layer alone saves {saved:.1%}" if saved else "")


def _brief(value: object) -> str:
    if isinstance(value, dict):
        if "size_bytes" in value:
            return f"{value['size_bytes'] / 1e6:.3f} MB"
        return "\n".join(f"{name}: {_brief(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_checks(checks: list["Check"]) -> None:
    """Print what a machine can run."""
    table = Table(show_header=False)
    for check in checks:
        mark = "[green]ok[/green]" if check.missing is None else "[yellow]missing[/yellow]"
        table.add_row(mark, check.name, escape(check.found + (f"\n{check.missing}" if check.missing else "")))
    Console().print(table)


def print_report(report: "Report") -> None:
    """Say what each execution provider made of a bundle."""
    gpu = report.gpu
    device = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "no GPU"
    sizes = [(timing.texts, timing.words) for timing in report.outcomes[0].timings]
    table = _table("provider", "opened", "golden rows", "among others", *(f"{n} x {words} words" for n, words in sizes))
    for outcome in report.outcomes:
        if outcome.info is None or outcome.open_s is None or outcome.among_neighbours is None:
            table.add_row(outcome.asked, "[red]does not run it[/]")
            continue
        times = (f"{timing.median_ms:.1f} ms" for timing in outcome.timings)
        golden = f"{outcome.info.golden_max_abs_diff:.1e}"
        table.add_row(outcome.asked, f"{outcome.open_s:.1f} s", golden, f"{outcome.among_neighbours:.1e}", *times)
    console = Console()
    console.print(f"{report.bundle}, for {report.target} in {report.precision}, on {report.machine}; {device}")
    console.print(table)
    for outcome in report.outcomes:
        if outcome.error is not None:
            console.print(f"{outcome.asked}: {outcome.error}", highlight=False, markup=False)


def print_entries(entries: list["Entry"], *, removed: bool) -> None:
    """Print what the cache holds, or what was removed from it."""
    table = _table("entry", "MB", "days unused", title="removed" if removed else None)
    for entry in entries:
        table.add_row(escape(str(entry.path)), f"{entry.size_bytes / 1e6:.0f}", f"{entry.unused_days:.1f}")
    table.add_row("all", f"{sum(entry.size_bytes for entry in entries) / 1e6:.0f}", "")
    Console().print(table)


def _confusion(name: str, evaluation: Evaluation) -> Table:
    table = _table("", *evaluation.labels, "F1", title=f"{name}: label (down) answered as (across)")
    for label, counts, f1 in zip(evaluation.labels, evaluation.confusion, evaluation.f1, strict=True):
        table.add_row(escape(label), *map(str, counts), f"{f1:.3f}")
    return table


def _worst(name: str, evaluation: Evaluation) -> Table:
    table = _table(
        "row", "label", "answer", "probability", title=f"{name}: surest mistakes, by number of the row from 1"
    )
    for mistake in evaluation.worst:
        figures = str(mistake.row), escape(mistake.label), escape(mistake.answer), f"{mistake.probability:.3f}"
        table.add_row(*figures)
    return table
