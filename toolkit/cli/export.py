"""`ptexport export`: runs -> a bundle. Needs the extra `train`."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from ptexport.runtime.bundle.manifest import Precision
from ptexport.runtime.errors import HubError, PtexportError
from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@shared.target
@click.option("--opset", type=click.Choice(["18", "23"]), help="23: native attention [default: by target].")
@click.option(
    "--tune",
    "autotune",
    is_flag=True,
    help="Time the graphs that the target accepts on this machine, and use the fastest.",
)
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to compare [default: the run's own].")
@shared.lowering
@click.option(
    "--push", metavar="OWNER/NAME", help="Also put the bundle on the Hugging Face hub, as 'ptexport push' does."
)
@shared.private
@shared.force
@shared.as_json
@shared.log_file
def export(
    runs: tuple[Path, ...],
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
    **options: Any,
) -> None:
    """Export runs as an ONNX bundle, and compare it with Transformers.

    Several RUNS on one frozen backbone make a multi-task bundle: each is a task with the name of its folder.
    """
    with shared.extra("train"):
        from ptexport.exporters.export import ExportConfig
        from ptexport.exporters.export import export as run_export
        from ptexport.toolkit.cli import tables
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
    _check_push(push, private=private)
    lowered = shared.lowered(precision, max_accuracy_drop, keep_fp32)
    options["opset"] = None if opset is None else int(opset)
    config = ExportConfig(runs=runs, out=out, rows=rows, autotune=autotune, **lowered, **options)
    silence_libraries()
    with reporting(as_json=as_json, log_file=log_file) as report:
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
