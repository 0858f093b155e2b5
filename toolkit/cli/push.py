"""`ptexport push`: a bundle -> a commit on the Hugging Face hub. Needs no torch."""

import json
from pathlib import Path

import click

from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@shared.private
@shared.as_json
def push(bundle: Path, repository: str, private: bool, as_json: bool) -> None:
    """Verify a bundle and put it on the Hugging Face hub in one commit; others open it as hub:OWNER/NAME."""
    from ptexport.runtime.hub.push import check_push
    from ptexport.runtime.hub.push import push as run_push
    from ptexport.toolkit.cli.progress_bars import bars_on_terminals

    bars_on_terminals()
    check_push(repository, private=private)
    url = run_push(bundle, repository, private=private)
    click.echo(json.dumps({"commit_url": url}) if as_json else f"{url}: pushed; open it as hub:{repository}")
