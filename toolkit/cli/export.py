"""`ptexport export`: runs, adapters or classifiers -> a bundle. Needs the extra `train`."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from ptexport.runtime.bundle.manifest import Manifest, Precision
from ptexport.runtime.errors import HubError, PtexportError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import STDIN
from ptexport.toolkit.cli import options as shared
from ptexport.toolkit.cli.import_ import columns_of_rows, make_run, read_source

if TYPE_CHECKING:
    from ptexport.exporters.config import ExportConfig
    from ptexport.toolkit.cli.import_ import ImportInputs
    from ptexport.toolkit.imports.source import Source
    from ptexport.toolkit.progress import Progress

_OF_IMPORT = ("model", "labels", "template", "max_length")


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@shared.target
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="N,…",
    help="With --target tensorrt-rtx: the GPUs to build an engine for, such as 89,120.",
)
@click.option("--opset", type=click.Choice(["18", "23"]), help="23: native attention [default: by target].")
@click.option(
    "--tune",
    "autotune",
    is_flag=True,
    help="Time the graphs that the target accepts on this machine, and use the fastest.",
)
@click.option(
    "--rows", type=click.Path(path_type=Path), help="Rows to compare [default: the run's own, or the built-in cities]."
)
@shared.columns
@click.option("--model", help="For a PEFT adapter: see 'ptexport import peft --help'.")
@click.option("--labels", help="For a PEFT adapter or a classifier: see 'ptexport import peft|classifier --help'.")
@click.option("--template", help="For a PEFT adapter or a classifier: see 'ptexport import peft|classifier --help'.")
@click.option(
    "--max-length",
    type=click.IntRange(2),
    help="For a PEFT adapter or a classifier: maximum tokens per row [default: 512, or the model's].",
)
@shared.lowering
@click.option(
    "--push", metavar="OWNER/NAME", help="Also put the bundle on the Hugging Face hub, as 'ptexport push' does."
)
@shared.private
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def export(
    folders: tuple[Path, ...],
    out: Path,
    opset: str | None,
    capabilities: str | None,
    rows: Path | None,
    autotune: bool,
    push: str | None,
    private: bool,
    as_json: bool,
    log_file: Path | None,
    precision: Precision,
    max_accuracy_drop: float | None,
    keep_fp32: tuple[str, ...],
    verbose: bool,
    **options: Any,
) -> None:
    """Export a run, a PEFT adapter or a classifier as an ONNX bundle, and compare it with Transformers.

    DIR is the folder of a run, or of a PEFT adapter or a text classifier of Transformers, which is imported first.
    Several on one frozen backbone make a multi-task bundle: each is a task with the name of its folder.
    """
    given = {name: value for name in _OF_IMPORT if (value := options.pop(name)) is not None}
    put_over = columns_of_rows(options, rows)
    if rows == STDIN:
        raise click.UsageError("--rows - is read twice, which standard input cannot be; give a file.")
    lowered = shared.lowered(precision, max_accuracy_drop, keep_fp32)
    options["opset"] = None if opset is None else int(opset)
    with shared.extra("train"), TemporaryDirectory(prefix="ptexport-") as place:
        sources = _find_sources(folders, given)
        from ptexport.exporters.config import ExportConfig, check_options
        from ptexport.exporters.targets.tensorrt_rtx import read_capabilities
        from ptexport.toolkit.cli.progress_bars import reporting
        from ptexport.toolkit.run.run import Run

        runs = tuple(
            folder if source == "run" else Path(place) / str(number) / folder.resolve().name
            for number, (folder, source) in enumerate(zip(folders, sources, strict=True))
        )
        if capabilities is not None:
            options["compute_capabilities"] = read_capabilities(capabilities)
        columns = None
        if put_over is not None:
            columns = put_over(Run.read(folders[0]).config.columns if sources[0] == "run" else Columns())
        config = ExportConfig(runs=runs, out=out, rows=rows, columns=columns, autotune=autotune, **lowered, **options)
        check_options(config)
        _check_push(push, private=private)
        with reporting(as_json=as_json, log_file=log_file) as report:
            imports = _read_all(config, folders, sources, given, report)
            manifest = _export(config, imports, report, verbose=verbose)
    _finish(manifest, out, push, private=private, as_json=as_json)


def _find_sources(folders: Sequence[Path], given: dict[str, Any]) -> "list[Source]":
    """Find out what the folders hold; UsageError for options of imports if they are all runs."""
    from ptexport.toolkit.imports.source import find_source

    sources = [find_source(folder) for folder in folders]
    if given and set(sources) == {"run"}:
        option = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{option}: is for PEFT adapters and classifiers, a run has its own; leave it out.")
    return sources


def _export(
    config: "ExportConfig", imports: "Sequence[ImportInputs]", report: "Progress", *, verbose: bool
) -> Manifest:
    """Make the imports, and export the runs."""
    from ptexport.toolkit.cli.progress_bars import silence_libraries

    report.stage("loading PyTorch")
    from ptexport.exporters.export import export

    if not verbose:
        silence_libraries()
    for inputs in imports:
        make_run(inputs, report)
    return export(config, report)


def _finish(manifest: Manifest, out: Path, push: str | None, *, private: bool, as_json: bool) -> None:
    """Print the manifest, and push the bundle."""
    from ptexport.toolkit.cli import tables

    if not as_json:
        tables.print_export(manifest, out)
    pushed = {} if push is None else {"commit_url": _push(out, push, private=private)}
    if as_json:
        click.echo(json.dumps({**json.loads(manifest.to_json()), **pushed}, indent=2, ensure_ascii=False))
    elif push is not None:
        click.echo(f"{pushed['commit_url']}: pushed; open it as hub:{push}")


def _check_push(repository: str | None, *, private: bool) -> None:
    """Check before the work that the bundle can be pushed."""
    if repository is not None:
        from ptexport.runtime.hub.push import check_push

        check_push(repository, private=private)
    elif private:
        raise click.UsageError("--private goes with --push OWNER/NAME.")


def _push(out: Path, repository: str, *, private: bool) -> str:
    """Push the exported bundle; returns the URL of the commit."""
    from ptexport.runtime.hub.push import push
    from ptexport.toolkit.cli.progress_bars import bars_on_terminals

    bars_on_terminals()
    try:
        return push(out, repository, private=private)
    except PtexportError as e:
        again = shlex.join(["ptexport", "push", str(out), repository, *(["--private"] if private else [])])
        raise HubError(f"{out}: exported, but not on the hub ({e}); push it with: {again}") from e


def _read_all(
    config: "ExportConfig",
    folders: Sequence[Path],
    sources: "Sequence[Source]",
    given: dict[str, Any],
    progress: "Progress",
) -> "list[ImportInputs]":
    """Check runs, adapters and classifiers without PyTorch; returns the inputs of the imports.

    Args:
        config: options of the export, with a run for each folder.
        folders: runs, adapters and classifiers.
        sources: what each folder holds.
        given: options of imports.
        progress: receives stages.
    """
    from ptexport.exporters.config import read_inputs
    from ptexport.toolkit.imports.config import ImportConfig

    inputs = []
    for folder, source, run in zip(folders, sources, config.runs, strict=True):
        if source != "run":
            options = ImportConfig(source=str(folder), out=run, rows=config.rows, columns=config.columns, **given)
            inputs.append(read_source(source, options, progress))
    trained = tuple(run for run, source in zip(config.runs, sources, strict=True) if source == "run")
    if trained:
        read_inputs(replace(config, runs=trained))
    return inputs
