"""`ptexport cache`: list or remove cached models and traces."""

import json

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@click.option(
    "--prune",
    type=shared.FiniteRange(0),
    metavar="DAYS",
    help="Remove entries that were not used for so many days; 0: all.",
)
@shared.as_json
def cache(prune: float | None, as_json: bool) -> None:
    """List converted models, traced backbones and bundles from the hub, or remove old ones."""
    with shared.extra("train"):
        from ptexport.toolkit.store import cache as cache_
    from ptexport.toolkit.cli.tables_inspect import print_entries

    entries = cache_.list_entries() if prune is None else cache_.prune(unused_days=prune)
    if as_json:
        records = [{"path": str(e.path), "size_bytes": e.size_bytes, "unused_days": e.unused_days} for e in entries]
        click.echo(json.dumps(records))
    else:
        print_entries(entries, removed=prune is not None)
