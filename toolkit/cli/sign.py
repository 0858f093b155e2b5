"""The command that says who made a bundle: sign."""

import json
from pathlib import Path

import click

from ptexport.runtime.errors import OutputError
from ptexport.toolkit.cli import options as shared


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    type=click.Path(path_type=Path),
    required=True,
    help="A PEM file: an elliptic curve's key, as openssl makes it.",
)
@shared.force
@shared.as_json
def sign(bundle: Path, private_key: Path, force: bool, as_json: bool) -> None:
    """Verify a bundle and sign all its files, with model.sig beside them (OpenSSF Model Signing)."""
    from ptexport.runtime.bundle.folder import Bundle, check_unchanged
    from ptexport.runtime.bundle.signature import SIGNATURE, sign_folder

    signature = bundle / SIGNATURE
    if signature.exists() and not force:
        raise OutputError(f"{signature}: exists already; replace it with --force")
    check_unchanged(Bundle.open(bundle))
    files = sign_folder(bundle, private_key)
    if as_json:
        click.echo(json.dumps({"signature": str(signature), "files": files}))
    else:
        click.echo(f"{signature}: signs {', '.join(files)}")
