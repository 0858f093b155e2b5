"""The command line: `ptexport`. Each command imports what it needs when it runs, so that serving needs no torch."""

import os
import sys
from importlib.metadata import version

import click

from ptexport.runtime.errors import PtexportError
from ptexport.toolkit import cli_bench, cli_device, cli_look, cli_make, cli_pack, cli_sign, cli_use, processes


def main() -> None:
    """Run the command line: exit code 0 on success, 1 on a failure, 2 on wrong use."""
    try:
        cli(prog_name="ptexport")
    except PtexportError as e:
        click.echo(
            f"ptexport: {e}" if processes.is_first() else f"ptexport, process {os.environ['RANK']}: {e}", err=True
        )
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("ptexport"))
def cli() -> None:
    """Train soft prompts on a frozen language model and serve them as one ONNX classifier."""


for command in (
    cli_make.train,
    cli_make.import_,
    cli_make.export,
    cli_pack.pack,
    cli_pack.install,
    cli_sign.sign,
    cli_use.predict,
    cli_use.evaluate,
    cli_use.serve,
    cli_look.inspect,
    cli_bench.bench,
    cli_device.doctor,
    cli_device.warmup,
    cli_look.cache,
):
    cli.add_command(command)

if __name__ == "__main__":
    main()
