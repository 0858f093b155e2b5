"""`ptexport evaluate`: one or two bundles on labelled rows. Needs no torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.runtime.bundle.manifest import TaskEntry
    from ptexport.runtime.rows.columns import Columns
    from ptexport.runtime.rows.row import Row
    from ptexport.toolkit.cli.progress_bars import ProgressBars
    from ptexport.toolkit.evaluation.evaluate import Result


@click.command()
@shared.bundles
@click.option(
    "--data",
    required=True,
    help="Labelled rows: a CSV, JSON, Parquet or Arrow file, - for standard input, or the test rows of "
    "hub:NAME[/CONFIG] or cities.",
)
@shared.columns
@click.option("--task", help="Task of a multi-task bundle to evaluate.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write an HTML page with plots.")
@click.option(
    "--show-texts",
    is_flag=True,
    help="List the texts of the most confident mistakes, also on the page and in the JSON. Off by default, because "
    "texts may be private.",
)
@shared.opening
@shared.force
@shared.as_json
@shared.log_file
def evaluate(
    bundles: tuple[Path, ...],
    data: str,
    task: str | None,
    html: Path | None,
    show_texts: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Evaluate one bundle on labelled rows, or compare two bundles."""
    from ptexport.runtime import Engine
    from ptexport.runtime.rows.read import count_lines
    from ptexport.toolkit.cli.progress_bars import reporting
    from ptexport.toolkit.evaluation.evaluate import check_comparable, evaluate

    parse_columns = shared.columns_parser(options)
    _check_usage(bundles, data, html, force=force)
    engines = [Engine.open(bundle, **options) for bundle in bundles]
    # Of two bundles, one may have this task only, under its own name.
    names = [task if len(engine.tasks) > 1 or len(engines) == 1 else None for engine in engines]
    tasks = [engine.task(name) for engine, name in zip(engines, names, strict=True)]
    check_comparable(tasks)
    total = count_lines(Path(data))
    results = []
    with reporting(as_json=as_json, log_file=log_file) as report:
        for engine, chosen in zip(engines, tasks, strict=True):
            rows = _rows(data, chosen.entry, parse_columns(chosen.entry.columns), report)
            name = chosen.entry.name
            done = evaluate(engine, rows, lambda n: report.rows(n, total), task=name, keep_texts=show_texts)
            results.append(done)
            report.all_rows()
    _show(results, data, html, as_json=as_json, force=force)


def _rows(data: str, task: "TaskEntry", columns: "Columns", report: "ProgressBars") -> Iterator["Row"]:
    from ptexport.toolkit.data.splits import read_test_rows

    by_label = task.labels is not None
    return read_test_rows(data, columns, report.choice, fields=task.fields, by_label=by_label, seed=task.seed)


def _show(results: list["Result"], data: str, html: Path | None, *, as_json: bool, force: bool) -> None:
    """Print the evaluations, and write the page."""
    import msgspec

    from ptexport.toolkit.cli.tables import print_evaluations
    from ptexport.toolkit.data.sources import source_name
    from ptexport.toolkit.evaluation.evaluate import contrast

    evaluations = [result.evaluation for result in results]
    both = contrast(*results) if len(results) == 2 else None
    if as_json:
        click.echo(msgspec.json.encode({"evaluations": evaluations, "contrast": both}))
    else:
        print_evaluations(evaluations, both)
    if html is not None:
        from ptexport.toolkit.evaluation.html_page import write_page

        write_page(html, evaluations, both, data=source_name(data), force=force)


def _check_usage(bundles: tuple[Path, ...], data: str, html: Path | None, *, force: bool) -> None:
    """Refuse options that do not go together, and a page that cannot be written, before anything is loaded."""
    from ptexport.toolkit.store.files import check_output

    if len(bundles) > 2:
        raise click.UsageError(f"Got {len(bundles)} bundles; give one or two.")
    if html is not None:
        with shared.extra("bench"):
            import jinja2  # noqa: F401 - checked before the work rather than after it
            import matplotlib as mpl  # noqa: F401
        check_output(html, force=force)
    if len(bundles) == 2 and (data == "-" or (Path(data).exists() and not Path(data).is_file())):
        raise click.UsageError(f"{data} can be read only once; give a file to compare two bundles.")
