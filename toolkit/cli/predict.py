"""`ptexport predict`: texts or rows -> labels. Needs no torch."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.runtime.errors import DataError, OutputError
from ptexport.toolkit.cli import options as shared

_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")  # of files of rows

if TYPE_CHECKING:
    from ptexport.runtime import Engine, Task
    from ptexport.runtime.label_file import Counts
    from ptexport.runtime.rows.columns import Columns
    from ptexport.runtime.rows.row import Row
    from ptexport.toolkit.cli.progress_bars import ProgressBars


@click.command()
@shared.bundle
@click.argument("texts", nargs=-1)
@click.option(
    "--input",
    "rows",
    type=click.Path(path_type=Path),
    help="Predict the rows of this CSV, JSON, Parquet or Arrow file instead of TEXTS; - for standard input.",
)
@shared.columns
@click.option(
    "--keep",
    metavar="NAME,…",
    help="Columns of the input to write with each prediction; all: every column whose name is not a field of the "
    "output.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write predictions to this JSONL file [default: print them]."
)
@click.option("--resume", is_flag=True, help="Keep the rows that --output already has, and continue after them.")
@click.option(
    "--top-k",
    type=click.IntRange(1),
    help="Number of labels with probabilities, the most probable first [default: all; 5 for an open vocabulary].",
)
@click.option("--task", help="Task of a multi-task bundle to predict, or all.")
@click.option("--strict", is_flag=True, help="Fail on a text longer than the bundle takes, instead of truncating it.")
@shared.opening
@shared.force
@shared.as_json
@shared.log_file
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    rows: Path | None,
    keep: str | None,
    output: Path | None,
    resume: bool,
    top_k: int | None,
    task: str | None,
    strict: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Predict the labels of TEXTS, or of the rows of a file.

    For a pair template, two TEXTS make one row. For a multiple choice, the first is the text, the others its choices.
    """
    from ptexport.runtime import Engine
    from ptexport.runtime.bundle.manifest import ALL
    from ptexport.runtime.rows.read import count_lines, read_rows
    from ptexport.toolkit.cli.progress_bars import reporting

    if rows is None and (keep is not None or shared.has_columns(options)):
        raise click.UsageError("--keep and the options about columns go with --input.")
    parse_columns = shared.columns_parser(options)
    kept = _kept(keep)
    _check_usage(texts, rows, output, resume=resume, force=force, log_file=log_file)
    engine = Engine.open(bundle, **options)
    if task is None and len(engine.tasks) > 1:
        raise click.UsageError(f"The bundle has the tasks {', '.join(engine.tasks)}; give --task NAME or --task all.")
    how: dict[str, Any] = {"task": task, "strict": strict, "top_k": top_k}
    tasks = list(engine.tasks.values()) if task == ALL else [engine.task(task)]
    _warn_of_files(texts)

    def given(say: Callable[[str], None]) -> Iterator["Row"]:
        if rows is None:
            return iter(_typed(texts, tasks[0].entry.fields))
        return read_rows(rows, _columns(tasks, parse_columns), keep=kept, say=say)

    if output is None:
        read = given(lambda said: None if as_json else click.echo(said, err=True))
        _print_predictions(engine, read, as_json=as_json or rows is not None, **how)
        return
    total = None if rows is None else count_lines(rows)
    with reporting(as_json=as_json, log_file=log_file) as report:
        read = given(report.choice)
        counts = _write_predictions(engine, read, total, output, report, resume=resume, force=force, **how)
    _print_counts(counts, output, as_json=as_json, resume=resume)


def _columns(tasks: Sequence["Task"], parse_columns: Callable[["Columns"], "Columns"]) -> "Columns":
    from ptexport.runtime.label_rows import columns_of

    return parse_columns(columns_of(tasks)).without_label()


def _warn_of_files(texts: tuple[str, ...]) -> None:
    """Warn of a text that is the name of a file of rows."""
    for text in texts:
        if Path(text).suffix in _ENDINGS and Path(text).is_file():
            click.echo(f"warning: {text!r} is read as a text; to predict the rows of a file, use --input", err=True)


def _print_counts(counts: "Counts", output: Path, *, as_json: bool, resume: bool) -> None:
    if as_json:
        click.echo(json.dumps({"output": str(output), **dataclasses.asdict(counts)}))
        return
    low = f"; {counts.unlabelled} without a label, since the probability is too low" if counts.unlabelled else ""
    all_there = " now, the others were there already" if resume else ""
    click.echo(f"{output}: {counts.rows} rows predicted{all_there}{low}")


def _kept(keep: str | None) -> tuple[str, ...] | None:
    """Parse --keep; None: all columns.

    Raises:
        UsageError: a column is named as a field of the output.
    """
    from ptexport.runtime.label_rows import OWN_FIELDS

    names = tuple(name.strip() for name in keep.split(",")) if keep else ()
    clash = next((name for name in names if name in OWN_FIELDS), None)
    if clash is not None:
        raise click.UsageError(
            f"--keep: the output has a field {clash!r} of its own; rename the column, or leave it out."
        )
    return None if names == ("all",) else names


def _check_usage(
    texts: tuple[str, ...],
    rows: Path | None,
    output: Path | None,
    *,
    resume: bool,
    force: bool,
    log_file: Path | None,
) -> None:
    """Check that the options go together, before anything is loaded.

    Raises:
        UsageError: they do not.
        DataError: the input does not exist.
        OutputError: the output is the input, exists, or is named like another kind of file.
    """
    if bool(texts) == (rows is not None):
        raise click.UsageError("Give TEXTS or --input, one of the two.")
    if resume and (output is None or force):
        raise click.UsageError("--resume goes with --output and without --force.")
    if output is None and (log_file is not None or force):
        raise click.UsageError(f"{'--force' if force else '--log-file'} goes with --output; predictions are printed.")
    if rows is not None and str(rows) != "-" and not rows.exists():
        raise DataError(f"{rows}: cannot be read (No such file or directory); check the path")
    if rows is not None and output is not None and output.is_file() and rows.exists() and output.samefile(rows):
        raise OutputError(f"{output}: got the input as output, need another file; choose another name")
    if output is not None and output.suffix.lower() in (".csv", ".tsv", ".parquet", ".xlsx"):
        raise OutputError(
            f"{output}: got a name that ends in {output.suffix!r}, but JSON lines are written; use .jsonl"
        )
    if output is not None and output.is_file() and not resume and not force:
        raise OutputError(f"{output}: exists already; choose another name, or replace it with --force")


def _write_predictions(
    engine: "Engine", rows: Iterator["Row"], total: int | None, output: Path, report: "ProgressBars", **how: Any
) -> "Counts":
    """Predict rows into a file with `label_file`, and return how many there were."""
    from ptexport.runtime.label_file import label_file

    try:
        counts = label_file(engine, rows, output, report=lambda done: report.rows(done, total), **how)
    except KeyboardInterrupt as e:
        raise OutputError(f"{output}: interrupted; continue with --resume") from e
    report.all_rows()
    if counts.truncated:
        report.warning(_truncated(counts.truncated))
    return counts


def _typed(texts: tuple[str, ...], fields: Sequence[str]) -> list["Row"]:
    from ptexport.runtime.rows.row import Row, check_choices

    if "choice" in fields:
        return [Row(where="TEXTS", text=texts[0], choices=check_choices(texts[1:], "TEXTS"))]
    width = len(fields)
    if len(texts) % width:
        raise click.UsageError(f"The template takes {width} texts a row; got {len(texts)}.")
    return [
        Row(where="TEXTS", text=t[0], text_b=t[1] if width == 2 else None)
        for t in zip(*[iter(texts)] * width, strict=True)
    ]


def _print_predictions(
    engine: "Engine", rows: Iterator["Row"], *, task: str | None, as_json: bool, strict: bool, top_k: int | None
) -> None:
    from ptexport.runtime.label_rows import json_lines, predict_rows_of

    truncated, named = 0, len(engine.tasks) > 1
    for row, by_task in predict_rows_of(engine, rows, task, strict=strict, top_k=top_k):
        truncated += any(prediction.truncated for prediction in by_task.values())
        if as_json:
            for line in json_lines(row, by_task, named=named):
                click.echo(line, nl=False)
            continue
        # One line per prediction and one column per text, so runs of white space become one space; --json keeps them.
        columns = [" ".join(text.split()) for text in (row.text, row.text_b) if text is not None]
        for name, prediction in by_task.items():
            score = f"{prediction.probabilities[prediction.surest]:.3f}"
            click.echo("\t".join([*([name] if named else []), prediction.label or "-", score, *columns]))
            if top_k is not None:
                for label, probability in prediction.probabilities.items():
                    click.echo(f"  {label}\t{probability:.3f}")
    if truncated:
        click.echo(f"warning: {_truncated(truncated)}", err=True)


def _truncated(count: int) -> str:
    return f"{count} of the texts were longer than the bundle takes and were truncated; --strict refuses them"
