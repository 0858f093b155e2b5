"""`ptexport doctor` and `ptexport warmup`: the machine that runs bundles. Need no torch."""

import json
import time
from pathlib import Path

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@click.option("--run", "bundle", type=shared.BundleFolder(), help="Run this bundle on every execution provider.")
@click.option("--out", type=click.Path(path_type=Path), help="With --run: write the report as JSON, to share it.")
@click.option("--device", type=click.IntRange(0), default=0, help="Number of the GPU.")
@shared.force
@shared.as_json
def doctor(bundle: Path | None, out: Path | None, device: int, as_json: bool, force: bool) -> None:
    """List what this machine can run and what is missing; with --run, run a bundle."""
    import msgspec

    from ptexport.toolkit.cli.tables_inspect import print_checks, print_report
    from ptexport.toolkit.evaluation.doctor import examine

    if bundle is None:
        if out is not None:
            raise click.UsageError("--out goes with --run BUNDLE.")
        checks = examine()
        if as_json:
            click.echo(msgspec.json.encode(checks))
        else:
            print_checks(checks)
        return
    from ptexport.toolkit.evaluation.provider_report import check_providers
    from ptexport.toolkit.store.files import check_output, write_whole

    if out is not None:
        check_output(out, force=force)
    report = check_providers(bundle, device=device)
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if out is not None:
        write_whole(out, encoded, force=force)
    if as_json:
        click.echo(encoded)
    else:
        print_report(report)


@click.command()
@shared.bundle
@click.option("--device", type=click.IntRange(0), default=0, help="Number of the GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def warmup(bundle: Path, device: int, as_json: bool) -> None:
    """Build the TensorRT engine of a bundle for this device and cache it, so that opening the bundle takes seconds.

    Run it on the device that will serve, with the same versions. Not run on a GPU yet.
    """
    from ptexport.runtime import Engine

    started = time.perf_counter()
    engine = Engine.open(bundle, provider="tensorrt", device=device)
    built_s = time.perf_counter() - started
    engine.warm_up()
    record = {"bundle": engine.manifest.name, "provider": engine.info.provider, "open_s": round(built_s, 1)}
    record["warm_s"] = round(time.perf_counter() - started - built_s, 1)
    if as_json:
        click.echo(json.dumps(record))
    else:
        click.echo(f"{bundle}: opened in {record['open_s']} s, every batch shape run in {record['warm_s']} s")
