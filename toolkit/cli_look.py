"""The commands that look and tell: inspect, doctor and cache."""

import json
from pathlib import Path

import click

from ptexport.toolkit import cli_options as shared


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@shared.as_json
def inspect(folder: Path, as_json: bool) -> None:
    """Verify a bundle and say what is in it, or what is in a run."""
    from ptexport.runtime.bundle import MANIFEST
    from ptexport.toolkit.describe import describe
    from ptexport.toolkit.progress import silence_libraries
    from ptexport.toolkit.tables import print_description

    with shared.extra("train"):
        if not (folder / MANIFEST).is_file():
            silence_libraries()
        record = describe(folder)
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
    else:
        print_description(record)


@click.command()
@shared.as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can run, and what is missing for the rest."""
    import msgspec

    from ptexport.toolkit.doctor import examine
    from ptexport.toolkit.tables import print_checks

    checks = examine()
    if as_json:
        click.echo(msgspec.json.encode(checks))
    else:
        print_checks(checks)


@click.command()
@click.option(
    "--prune", type=shared.FiniteRange(0), metavar="DAYS", help="Remove what was unused so long; 0: everything."
)
@shared.as_json
def cache(prune: float | None, as_json: bool) -> None:
    """List converted models and traced backbones, or remove old ones."""
    with shared.extra("train"):
        from ptexport.toolkit import cache as cache_
    from ptexport.toolkit.tables import print_entries

    entries = cache_.list_entries() if prune is None else cache_.prune(unused_days=prune)
    if as_json:
        records = [{"path": str(e.path), "size_bytes": e.size_bytes, "unused_days": e.unused_days} for e in entries]
        click.echo(json.dumps(records))
    else:
        print_entries(entries, removed=prune is not None)
