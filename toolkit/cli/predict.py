"""`ptexport predict`: texts or rows -> labels. Needs no torch."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.runtime.errors import OutputError
from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.runtime import Engine, TaskEngine
    from ptexport.runtime.rows import Row


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option(
    "--input", "rows", type=click.Path(path_type=Path), help="A .jsonl or .csv file of rows instead of TEXTS."
)
@click.option("--output", type=click.Path(path_type=Path), help="Where the answers go, as JSONL [default: printed].")
@click.option("--resume", is_flag=True, help="Keep the rows that an --output has already, and go on after them.")
@click.option(
    "--top-k",
    type=click.IntRange(1),
    help="Give the probabilities of so many labels, the surest first [default: all; 5 of a vocabulary's].",
)
@click.option("--task", help="Of a bundle of many tasks: the one to answer, or all.")
@click.option("--strict", is_flag=True, help="Refuse texts longer than the bundle takes; else they are truncated.")
@shared.opening
@shared.force
@shared.as_json
@shared.log_file
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    rows: Path | None,
    output: Path | None,
    resume: bool,
    top_k: int | None,
    task: str | None,
    strict: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    **opening: Any,
) -> None:
    """Label TEXTS, or the rows of a file.

    For a pair template two TEXTS make one row; for a multiple choice the first is the text, all others its choices.
    """
    from ptexport.runtime import Engine, TaskEngine
    from ptexport.runtime.bundle.folder import holds_tasks
    from ptexport.runtime.rows import count_lines, read_rows

    if bool(texts) == (rows is not None):
        raise click.UsageError("Give TEXTS or --input, one of the two.")
    if resume and (output is None or force):
        raise click.UsageError("--resume goes with --output and without --force.")
    if output is None and (log_file is not None or force):
        raise click.UsageError(f"{'--force' if force else '--log-file'} goes with --output; answers are printed.")
    if rows is not None and output is not None and output.is_file() and rows.exists() and output.samefile(rows):
        raise OutputError(f"{output}: is the input; choose another name")
    if holds_tasks(bundle):
        if output is not None or strict or rows is not None or top_k is not None or task is None:
            raise click.UsageError("A bundle of many tasks takes TEXTS and --task NAME, or --task all.")
        _print_tasks(TaskEngine.open(bundle, **opening), texts, task, as_json=as_json)
        return
    if task is not None:
        raise click.UsageError("--task: the bundle has one task only; leave it out.")
    engine = Engine.open(bundle, **opening)
    typed = _typed(texts, engine.manifest.fields) if texts else []
    given = iter(typed) if rows is None else read_rows(rows)
    if output is None:
        _print_answers(engine, given, as_json=as_json or rows is not None, strict=strict, top_k=top_k)
        return
    total = len(typed) if rows is None else count_lines(rows)
    how = {"resume": resume, "force": force, "strict": strict, "top_k": top_k}
    _write_answers(engine, given, total, output, as_json=as_json, log_file=log_file, **how)


def _write_answers(
    engine: "Engine",
    rows: Iterator["Row"],
    total: int | None,
    output: Path,
    *,
    as_json: bool,
    log_file: Path | None,
    **how: Any,
) -> None:
    """Label rows into a file, as `label_file` does, and say how many there were."""
    from ptexport.runtime.label_file import label_file
    from ptexport.toolkit.cli.progress_bars import reporting

    with reporting(as_json=as_json, log_file=log_file) as report:
        try:
            counts = label_file(engine, rows, output, report=lambda done: report.rows(done, total), **how)
        except KeyboardInterrupt as e:
            raise OutputError(f"{output}: interrupted; go on with --resume") from e
        report.all_rows()
        if counts.truncated:
            report.warning(_truncated(counts.truncated))
    if as_json:
        click.echo(json.dumps({"output": str(output), **dataclasses.asdict(counts)}))
    else:
        unsure = f", {counts.unlabelled} of them too unsure for a label" if counts.unlabelled else ""
        click.echo(f"{output}: {counts.rows} rows labelled now{unsure}")


def _typed(texts: tuple[str, ...], fields: Sequence[str]) -> list["Row"]:
    from ptexport.runtime.rows import Row, check_choices

    if "choice" in fields:
        return [Row(where="TEXTS", text=texts[0], choices=check_choices(texts[1:], "TEXTS"))]
    width = len(fields)
    if len(texts) % width:
        raise click.UsageError(f"The template takes {width} texts a row; got {len(texts)}.")
    return [
        Row(where="TEXTS", text=t[0], text_b=t[1] if width == 2 else None)
        for t in zip(*[iter(texts)] * width, strict=True)
    ]


def _print_tasks(engine: "TaskEngine", texts: tuple[str, ...], task: str, *, as_json: bool) -> None:
    given = list(texts)
    if task == "all":
        answers = engine.predict_all(given)
    else:
        answers = [{task: prediction} for prediction in engine.predict(given, task=task)]
    for text, by_task in zip(given, answers, strict=True):
        for name, prediction in by_task.items():
            if as_json:
                click.echo(json.dumps({"text": text, "task": name, **dataclasses.asdict(prediction)}))
            else:
                score = prediction.probabilities[prediction.surest]
                click.echo("\t".join([name, prediction.label or "-", f"{score:.3f}", " ".join(text.split())]))


def _print_answers(engine: "Engine", rows: Iterator["Row"], *, as_json: bool, strict: bool, top_k: int | None) -> None:
    from ptexport.runtime.label_file import json_line, predict_rows

    truncated = 0
    for row, prediction in predict_rows(engine, rows, strict=strict, top_k=top_k):
        truncated += prediction.truncated
        if as_json:
            click.echo(json_line(row, prediction), nl=False)
        else:
            score = prediction.probabilities[prediction.surest]
            # One line and one column each, whatever spaces a text holds; --json keeps them.
            columns = [" ".join(text.split()) for text in (row.text, row.text_b) if text is not None]
            click.echo("\t".join([prediction.label or "-", f"{score:.3f}", *columns]))
            if top_k is not None:
                for label, probability in prediction.probabilities.items():
                    click.echo(f"  {label}\t{probability:.3f}")
    if truncated:
        click.echo(f"warning: {_truncated(truncated)}", err=True)


def _truncated(count: int) -> str:
    return f"{count} text(s) longer than the bundle takes were truncated; --strict refuses"
