"""`ptexport pack` and `ptexport install`: tasks without their backbone."""

import json
from pathlib import Path
from typing import Any

import click

from ptexport.runtime.bundle.manifest import Precision
from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file, such as task.ptpack.")
@click.option("--opset", type=click.Choice(["18", "23"]), default="18", show_default=True, help="As in the bundles.")
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to compare [default: the run's own].")
@shared.target
@shared.lowering
@shared.force
@shared.as_json
@shared.log_file
def pack(
    opset: str,
    as_json: bool,
    log_file: Path | None,
    precision: Precision,
    max_accuracy_drop: float | None,
    keep_fp32: tuple[str, ...],
    **options: Any,
) -> None:
    """Write what is new for one or several tasks into one file, for devices that have a bundle of their backbone.

    The RUNS are exported and compared with Transformers as 'export' does it. Use the target, precision and opset of the
    bundles on the devices.
    """
    if options["target"] == "tensorrt-rtx":
        raise click.UsageError("--target tensorrt-rtx: packs hold no engine and fit bundles with one; pack for cuda.")
    with shared.extra("train"):
        from ptexport.exporters.config import ExportConfig
        from ptexport.exporters.packs.pack import pack as run_pack
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
    lowered = shared.lowered(precision, max_accuracy_drop, keep_fp32)
    config = ExportConfig(opset=int(opset), **lowered, **options)
    silence_libraries()
    with reporting(as_json=as_json, log_file=log_file) as report:
        made = run_pack(config, report)
    sizes = {name: array.nbytes for name, array in made.arrays.items()}
    size = config.out.stat().st_size
    manifest = made.record.manifest
    if as_json:
        click.echo(json.dumps({"size_bytes": size, "arrays": sizes, "digest": made.digest}))
        return
    parts = ", ".join(f"{name} {n / 1e3:.0f} kB" for name, n in sizes.items())
    of = f"{manifest.backbone.name}, opset {manifest.graph.opset}, {manifest.graph.precision}"
    several = f"{len(manifest.tasks)} tasks, " if len(manifest.tasks) > 1 else ""
    click.echo(f"{config.out}: {several}{size / 1e3:.0f} kB ({parts}) for bundles of {of}")


@click.command()
@click.argument("pack", type=click.Path(path_type=Path))
@click.option(
    "--backbone",
    type=shared.BundleFolder(),
    required=True,
    help="A bundle of the pack's backbone, with its precision, its opset, and one task or several.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new bundle's folder.")
@click.option("--check", is_flag=True, help="Run the golden rows first, and compare with the expected logits.")
@shared.force
@shared.as_json
def install(pack: Path, backbone: Path, out: Path, check: bool, force: bool, as_json: bool) -> None:
    """Make a bundle from a pack and a bundle of the same backbone, file for file as 'export' writes it."""
    with shared.extra("install"):
        from ptexport.exporters.packs.install import install as run_install
    manifest = run_install(pack, backbone, out, check=check, force=force)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    assert manifest.installed is not None, "it was installed"
    here = manifest.installed.golden_max_abs_diff
    checked = "not run here" if here is None else f"largest difference of a logit here {here:.1e}"
    rows = sum(task.parity.rows for task in manifest.tasks if task.parity is not None)
    compared = f"compared with Transformers on {rows} rows" if rows else "exported"
    click.echo(f"{out}: the same files as were {compared}; {checked}")
