"""`ptexport inspect`: what is in a bundle or a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptexport.runtime.errors import OutputError
from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.exporters.inspect.summary import GraphSummary


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@shared.require_signature
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a bundle's graph too, as .svg, .png or .pdf.")
@shared.force
@shared.as_json
def inspect(folder: Path, plot: Path | None, require_signature: Path | None, as_json: bool, force: bool) -> None:
    """Verify a bundle and say what is in it, or what is in a run."""
    import msgspec

    from ptexport.runtime.bundle.folder import MANIFEST
    from ptexport.toolkit.cli.progress_bars import silence_libraries
    from ptexport.toolkit.cli.tables_inspect import print_description, print_summary
    from ptexport.toolkit.evaluation.describe import describe

    is_bundle = (folder / MANIFEST).is_file()
    if require_signature is not None and not is_bundle:
        raise click.UsageError("--require-signature is of bundles; FOLDER holds none.")
    if plot is not None:
        _check_plot(plot, is_bundle=is_bundle, force=force)
    with shared.extra("train"):
        if not is_bundle:
            silence_libraries()
        record = describe(folder, require_signature=require_signature)
        longest = max(part["max_length"] for part in record.get("tasks", [record]))
        summary = _summarize(folder, longest, needed=plot is not None) if is_bundle else None
    if is_bundle:
        record["structure"] = msgspec.to_builtins(summary)
    if plot is not None and summary is not None:
        from ptexport.exporters.inspect.plot import write_plot

        write_plot(plot, record["name"], summary, force=force)
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    print_description(record)
    if is_bundle:
        print_summary(summary)


def _check_plot(path: Path, *, is_bundle: bool, force: bool) -> None:
    with shared.extra("bench"):
        import matplotlib as mpl  # noqa: F401 - asked for before the work rather than after it
    if not is_bundle:
        raise click.UsageError("--plot draws the graph of a bundle; FOLDER holds none.")
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise click.UsageError(f"--plot: got {path.name}, need a name that ends in .svg, .png or .pdf.")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --force")


def _summarize(folder: Path, max_length: int, *, needed: bool) -> "GraphSummary | None":
    """None where what reads graphs is not installed, unless it is needed."""
    from ptexport.runtime.bundle.folder import MODEL

    try:
        import onnx_ir as ir

        from ptexport.exporters.inspect.summary import LENGTH, summarize_graph
    except ModuleNotFoundError as e:
        if needed or (e.name or "").startswith("ptexport"):
            raise
        return None
    return summarize_graph(ir.load(folder / MODEL), min(LENGTH, max_length))
