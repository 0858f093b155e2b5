"""`ptexport evaluate`: one or two bundles on labelled rows. Needs no torch."""

from pathlib import Path
from typing import Any

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A .jsonl or .csv file of labelled rows.")
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
    data: Path,
    task: str | None,
    html: Path | None,
    show_texts: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    **opening: Any,
) -> None:
    """Evaluate one bundle on labelled rows, or compare two bundles."""
    import msgspec

    from ptexport.runtime import Engine
    from ptexport.runtime.rows import count_lines, read_rows
    from ptexport.toolkit.cli.progress_bars import reporting
    from ptexport.toolkit.cli.tables import print_evaluations
    from ptexport.toolkit.evaluation.evaluate import check_comparable, contrast, evaluate

    _check_usage(bundles, data, html, force=force)
    engines = [Engine.open(bundle, **opening) for bundle in bundles]
    # Of two bundles, one may have this task only, under its own name.
    names = [task if len(engine.tasks) > 1 or len(engines) == 1 else None for engine in engines]
    check_comparable([engine.task(name) for engine, name in zip(engines, names, strict=True)])
    total = count_lines(data)
    results = []
    with reporting(as_json=as_json, log_file=log_file) as report:
        for engine, name in zip(engines, names, strict=True):
            rows = read_rows(data)
            done = evaluate(engine, rows, lambda n: report.rows(n, total), task=name, keep_texts=show_texts)
            results.append(done)
            report.all_rows()
    evaluations = [result.evaluation for result in results]
    both = contrast(*results) if len(results) == 2 else None
    if as_json:
        click.echo(msgspec.json.encode({"evaluations": evaluations, "contrast": both}))
    else:
        print_evaluations(evaluations, both)
    if html is not None:
        from ptexport.toolkit.evaluation.html_page import write_page

        write_page(html, evaluations, both, data=data.name, force=force)


def _check_usage(bundles: tuple[Path, ...], data: Path, html: Path | None, *, force: bool) -> None:
    """Refuse options that do not go together, and a page that cannot be written, before anything is loaded."""
    from ptexport.toolkit.store.files import check_output

    if len(bundles) > 2:
        raise click.UsageError(f"Got {len(bundles)} bundles; give one or two.")
    if html is not None:
        with shared.extra("bench"):
            import jinja2  # noqa: F401 - checked before the work rather than after it
            import matplotlib as mpl  # noqa: F401
        check_output(html, force=force)
    if len(bundles) == 2 and data.exists() and not data.is_file():
        raise click.UsageError(f"{data} can be read only once; give a file to compare two bundles.")
