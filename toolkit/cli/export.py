"""`ptexport export`: runs, adapters or classifiers -> a bundle. Needs the extra `train`."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from ptexport.runtime.bundle.manifest import Precision
from ptexport.runtime.errors import HubError, PtexportError
from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.toolkit.imports.source import Source
    from ptexport.toolkit.progress import Progress

_OF_IMPORT = ("model", "labels", "template", "max_length")


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@shared.target
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
@click.option("--model", help="Of an adapter: as for 'import peft'.")
@click.option("--labels", help="Of an adapter or a classifier: as for 'import'.")
@click.option("--template", help="Of an adapter or a classifier: as for 'import'.")
@click.option("--max-length", type=click.IntRange(2), help="Of an adapter or a classifier: as for 'import'.")
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
    lowered = shared.lowered(precision, max_accuracy_drop, keep_fp32)
    options["opset"] = None if opset is None else int(opset)
    with shared.extra("train"), TemporaryDirectory(prefix="ptexport-") as place:
        from ptexport.toolkit.imports.source import find_source

        sources = [find_source(folder) for folder in folders]
        _check_given(given, sources)
        from ptexport.exporters.config import ExportConfig, check_options
        from ptexport.toolkit.cli import tables
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries

        runs = tuple(
            folder if source == "run" else Path(place) / str(number) / folder.resolve().name
            for number, (folder, source) in enumerate(zip(folders, sources, strict=True))
        )
        config = ExportConfig(runs=runs, out=out, rows=rows, autotune=autotune, **lowered, **options)
        check_options(config)
        _check_push(push, private=private)
        with reporting(as_json=as_json, log_file=log_file) as report:
            report.stage("loading PyTorch")
            from ptexport.exporters.export import export as run_export

            if not verbose:
                silence_libraries()
            for source, folder, run in zip(sources, folders, runs, strict=True):
                _import(source, folder, run, rows, given, report)
            manifest = run_export(config, report)
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


def _check_given(given: dict[str, Any], sources: Sequence["Source"]) -> None:
    """Raise UsageError for an option of imports that nothing among the sources takes."""
    for name in given:
        option = f"--{name.replace('_', '-')}"
        if set(sources) == {"run"}:
            raise click.UsageError(f"{option}: is for PEFT adapters and classifiers, a run has its own; leave it out.")
        if name == "model" and "adapter" not in sources:
            raise click.UsageError(f"{option}: is for PEFT adapters, a classifier is its own model; leave it out.")


def _import(
    source: "Source", folder: Path, run: Path, rows: Path | None, given: dict[str, Any], progress: "Progress"
) -> None:
    """Import an adapter or a classifier into a temporary run; leave a run as it is."""
    if source == "adapter":
        from ptexport.toolkit.imports.import_peft import import_peft
        from ptexport.toolkit.imports.peft_plan import ImportConfig

        import_peft(ImportConfig(adapter=folder, out=run, rows=rows, **given), progress)
    elif source == "classifier":
        from ptexport.toolkit.imports.import_classifier import ClassifierConfig, import_classifier

        given = {name: value for name, value in given.items() if name != "model"}
        import_classifier(ClassifierConfig(classifier=str(folder), out=run, rows=rows, **given), progress)
