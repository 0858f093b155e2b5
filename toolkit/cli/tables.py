"""Results of training, import, export and evaluation -> tables on standard output."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from ptexport.runtime.bundle.folder import ENGINE
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.measured import Candidate, Comparison, Parity
from ptexport.toolkit.evaluation.metrics import Contrast, Evaluation
from ptexport.toolkit.evaluation.wording import (
    ABSTENTION_NOTE,
    LABEL_HEADINGS,
    MISTAKE_HEADINGS,
    headings,
    label_rows,
    mistake_rows,
    summary,
    verdict,
)
from ptexport.toolkit.tables import print_table, say

if TYPE_CHECKING:
    from ptexport.toolkit.run.run import Run  # it needs the extra `train`
    from ptexport.toolkit.training.sweep_table import Outcome


_MOST_CHARACTERS = 300  # of a text


def print_metrics(run: "Run", out: Path) -> None:
    """Print the metrics of a trained run."""
    metrics = run.metrics
    assert metrics is not None, "it was trained"
    manual = sorted(metrics.manual_accuracy.items(), key=lambda item: item[1])
    rows = [[template, "hand-written", f"{accuracy:.1%}"] for template, accuracy in manual]
    rows.append([run.config.template, metrics.method, f"{metrics.test_accuracy:.1%}"])
    title = f"Accuracy on {metrics.n_test} test rows"
    print_table(("template", "method", "accuracy"), rows, title=title, highlight=len(manual) if manual else None)
    say(
        f"{out}: {metrics.trainable_parameters:,} parameters trained on {metrics.n_train} rows in "
        f"{metrics.train_seconds:.0f} s, dev accuracy {metrics.dev_accuracy:.1%}"
    )
    if metrics.abstain_below is not None:
        say(f"the bundle gives no label to a row whose probability is below {metrics.abstain_below:.3f}")
    if metrics.found_words is not None:
        say(f"found the words {', '.join(metrics.found_words)}")
        if metrics.manual_accuracy and metrics.test_accuracy <= statistics.median(metrics.manual_accuracy.values()):
            say("accuracy is not better than with the median hand-written template")


def print_import(run: "Run", out: Path) -> None:
    """Print how an imported run compares with its source."""
    imported = run.config.imported
    assert imported is not None, "it was imported"
    labels = "a vocabulary" if run.config.open_vocabulary else ", ".join(run.config.labels)
    what, original = "classifier", "Transformers"
    if imported.peft_type is not None:
        what, original = f"{imported.peft_type} for {imported.task_type} on", "PEFT"
    say(
        f"{out}: {what} {run.config.model}, labels {labels}; largest difference of a logit from {original} over "
        f"{imported.rows} rows {imported.max_abs_diff:.1e}"
    )


def print_outcomes(outcomes: list["Outcome"], out: Path) -> None:
    """Print the runs of a sweep, the best first."""
    rows = [
        [outcome.name, "failed", "", "", ""]
        if outcome.failed is not None
        else [
            outcome.name,
            f"{outcome.dev_accuracy:.1%}",
            f"{outcome.test_accuracy:.1%}",
            str(outcome.epochs),
            f"{outcome.train_seconds:.0f}",
        ]
        for outcome in outcomes
    ]
    best = outcomes[0]
    accuracies = f"{best.dev_accuracy:.1%} (test {best.test_accuracy:.1%})"
    say(f"{out}/best is {best.name}, with the highest dev accuracy: {accuracies}", style="bold")
    print_table(("run", "dev accuracy", "test accuracy", "epochs", "seconds"), rows, highlight=0)
    for outcome in outcomes:
        if outcome.failed is not None:
            say(f"{outcome.name}: {outcome.failed}")


def print_export(manifest: Manifest, out: Path) -> None:
    """Print an exported bundle, and its comparison with Transformers."""
    say(_parity_verdict(manifest), style="bold")
    for task in manifest.tasks:
        title = "" if len(manifest.tasks) == 1 else f"{task.name}: "
        if task.parity is not None:
            _print_parity(task.parity, task.fan_out, title)
    graph, lowered = manifest.graph, manifest.graph.lowered
    if lowered is not None and lowered.accuracy is not None:
        accuracy = f"accuracy {lowered.accuracy:.1%} on {lowered.rows} rows, {lowered.accuracy_fp32:.1%} in fp32"
        if lowered.accuracy_fp32 == 1:  # also without labels, where the predictions in fp32 are the reference
            accuracy = f"the label of fp32 on {lowered.accuracy:.1%} of {lowered.rows} rows"
        kept = f"; in fp32: {', '.join(lowered.kept_fp32)}" if lowered.kept_fp32 else ""
        say(f"{graph.precision}: {accuracy}{kept}")
    if graph.autotuned:
        _print_timings(graph.autotuned)
    if manifest.engine is not None:
        cards = " and ".join(manifest.engine.compute_capabilities)
        engine_mb = manifest.files[ENGINE].size_bytes / 1e6
        say(f"The engine has {engine_mb:.0f} MB, for compute capability {cards}; it was built, not run.")
    size = sum(entry.size_bytes for entry in manifest.files.values())
    say(f"{out}: {size / 1e6:.0f} MB, for {graph.target}, opset {graph.opset}, {_contents(manifest)}")


def _parity_verdict(manifest: Manifest) -> str:
    """State in one sentence how the bundle compares with Transformers."""
    measured = [task.parity for task in manifest.tasks if task.parity is not None]
    if not measured:
        return f"The bundle was not run, since ONNX Runtime's CPU provider cannot run {manifest.graph.precision}."
    batches = [batch for parity in measured for batch in (parity.alone, parity.padded_right, parity.padded_left)]
    rows, flips = sum(parity.rows for parity in measured), max(len(batch.flips) for batch in batches)
    same = f"all {rows} check rows" if not flips else f"all but {flips} of {rows} check rows"
    largest = max(batch.max_abs_diff for batch in batches)
    return (
        f"The bundle predicts the label of Transformers for {same}; the largest difference of a logit is {largest:.1e}."
    )


def _contents(manifest: Manifest) -> str:
    if len(manifest.tasks) == 1:
        folded = manifest.task.folded_tokens
        return f"{folded} leading tokens folded into constants" if folded else "no leading tokens to fold"
    passes = "one forward pass per text" if manifest.fan_out else "one forward pass per text and task"
    return f"{len(manifest.tasks)} tasks, {passes}"


def _print_parity(parity: Parity, fan_out: Comparison | None, title: str) -> None:
    rows = [
        [name, f"{result.max_abs_diff:.1e}", f"{result.mean_abs_diff:.1e}", str(len(result.flips))]
        for name, result in (
            ("each row alone", parity.alone),
            ("mixed, padded right", parity.padded_right),
            ("mixed, padded left", parity.padded_left),
            ("all tasks in one row", fan_out),
        )
        if result is not None
    ]
    for name, largest in (
        ("lengths from 1 token to the longest", parity.all_lengths),
        ("a row among 64 others, against alone", parity.among_neighbours),
    ):
        if largest is not None:
            rows.append([name, f"{largest:.1e}", "", ""])
    columns = ("check rows", "largest |Δlogit|", "mean |Δlogit|", "labels that differ")
    print_table(columns, rows, title=f"{title}{parity.rows} check rows, compared with untouched Transformers")


def _print_timings(candidates: list[Candidate]) -> None:
    sizes = [f"{timing.batch} x {timing.tokens}" for timing in candidates[0].timings]
    rows = [
        [
            f"opset {candidate.opset}",
            *(f"{timing.median_ms:.1f}" for timing in candidate.timings),
            "the same" if candidate.same_labels else "differ",
        ]
        for candidate in candidates
    ]
    title = "Latency (ms) of rows x tokens on this machine, median, timed alternately"
    print_table(("graph", *sizes, "labels"), rows, title=title)


def print_evaluations(evaluations: list[Evaluation], contrast: Contrast | None) -> None:
    """Print the verdict and the figures of one bundle, or of two side by side."""
    names = headings(evaluations)
    say(verdict(evaluations, contrast), style="bold")
    if contrast is not None:
        said = f"Their most probable labels are the same for {100 * contrast.agreement:.1f} % of the rows"
        if contrast.differing:
            rows = ", ".join(map(str, contrast.differing[:10])) + " …" * (len(contrast.differing) > 10)
            said += (
                f"; only {names[0]} is correct on {contrast.only_first_right}, only {names[1]} on "
                f"{contrast.only_second_right} (rows {rows})"
            )
        say(f"{said}.")
    abstains = any(evaluation.coverage < 1 for evaluation in evaluations)
    figures = [summary(evaluation, abstains=abstains) for evaluation in evaluations]
    say("")
    print_table(
        ("figure", *names),
        [[name, *(figure[name] for figure in figures)] for name in figures[0]],
        title=f"{evaluations[0].n_rows} rows",
    )
    for name, evaluation in zip(names, evaluations, strict=True):
        say("")
        print_table(LABEL_HEADINGS, label_rows(evaluation), title=f"{name}: labels")
        if evaluation.worst:
            mistakes = mistake_rows(evaluation, most_characters=_MOST_CHARACTERS)
            title = f"{name}: most confident mistakes, by row number from 1"
            say("")
            print_table(MISTAKE_HEADINGS[: len(mistakes[0])], mistakes, title=title)
    if abstains:
        say(ABSTENTION_NOTE)
