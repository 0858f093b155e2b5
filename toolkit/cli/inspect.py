"""`ptexport inspect`: describe a bundle or a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptexport.toolkit.cli import options as shared
from ptexport.toolkit.store.files import check_output

if TYPE_CHECKING:
    from ptexport.exporters.inspect.summary import GraphSummary


@click.command()
@click.argument("folder", type=shared.BundleFolder())
@shared.require_signature
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a bundle's graph as .svg, .png or .pdf.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the comparison with Transformers as a page.")
@shared.force
@shared.as_json
def inspect(
    folder: Path, plot: Path | None, html: Path | None, require_signature: Path | None, as_json: bool, force: bool
) -> None:
    """Verify a bundle and describe it, or describe a run."""
    import msgspec

    from ptexport.exporters.parity.report import ParityReport
    from ptexport.runtime.bundle.folder import MANIFEST
    from ptexport.toolkit.cli.progress_bars import silence_libraries
    from ptexport.toolkit.cli.tables_inspect import print_description, print_summary
    from ptexport.toolkit.evaluation.describe import describe

    is_bundle = (folder / MANIFEST).is_file()
    for option, given in (("--require-signature", require_signature), ("--plot", plot), ("--html", html)):
        if given is not None and not is_bundle:
            raise click.UsageError(f"{option} needs a bundle; FOLDER is not one.")
    _check_outputs(plot, html, force=force)
    parity = None if html is None else ParityReport.read(folder)
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
    if html is not None and parity is not None:
        from ptexport.exporters.parity.html_page import write_page

        write_page(html, parity, force=force)
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    print_description(record)
    if is_bundle:
        print_summary(summary)


def _check_outputs(plot: Path | None, html: Path | None, *, force: bool) -> None:
    """Check the files to write and the packages that draw them, before the work."""
    if plot is not None or html is not None:
        with shared.extra("bench"):
            import matplotlib as mpl  # noqa: F401
    if html is not None:
        with shared.extra("bench"):
            import jinja2  # noqa: F401
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise click.UsageError(f"--plot: got {plot.name}, need a name that ends in .svg, .png or .pdf.")
    for path in filter(None, (plot, html)):
        check_output(path, force=force)


def _summarize(folder: Path, max_length: int, *, needed: bool) -> "GraphSummary | None":
    """Summarize a graph; None if onnx_ir is not installed, unless `needed`."""
    from ptexport.runtime.bundle.folder import MODEL

    try:
        import onnx_ir as ir

        from ptexport.exporters.inspect.summary import LENGTH, summarize_graph
    except ModuleNotFoundError as e:
        if needed or (e.name or "").startswith("ptexport"):
            raise
        return None
    return summarize_graph(ir.load(folder / MODEL), min(LENGTH, max_length))
