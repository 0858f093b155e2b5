"""`ptexport sign`: a bundle and a private key -> model.sig. Needs the extra `sign`."""

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
    help="PEM file with an unencrypted private key on the curve P-256, P-384 or P-521.",
)
@shared.force
@shared.as_json
def sign(bundle: Path, private_key: Path, force: bool, as_json: bool) -> None:
    """Verify a bundle, sign all its files (OpenSSF Model Signing), and write model.sig beside them."""
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
        click.echo(f"{signature}: signature over {', '.join(files)}")
