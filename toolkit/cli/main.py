"""The command line `ptexport`. Each command imports what it needs when it runs, so that serving needs no torch."""

import os
import sys
from importlib.metadata import version

import click

from ptexport.runtime.errors import PtexportError
from ptexport.toolkit.cli import (
    bench,
    cache,
    device,
    evaluate,
    export,
    import_,
    inspect,
    pack,
    predict,
    push,
    serve,
    sign,
    train,
)
from ptexport.toolkit.prompt import distributed


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage."""
    try:
        cli(prog_name="ptexport")
    except PtexportError as e:
        click.echo(
            f"ptexport: {e}" if distributed.is_rank_0() else f"ptexport, process {os.environ['RANK']}: {e}", err=True
        )
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("ptexport"))
def cli() -> None:
    """Train soft prompts on a frozen language model and serve them as one ONNX classifier.

    BUNDLE is a folder, or hub:OWNER/NAME[@REVISION] on the Hugging Face hub.
    """


for command in (
    train.train,
    import_.import_,
    export.export,
    pack.pack,
    pack.install,
    sign.sign,
    push.push,
    predict.predict,
    evaluate.evaluate,
    serve.serve,
    inspect.inspect,
    bench.bench,
    device.doctor,
    device.warmup,
    cache.cache,
):
    cli.add_command(command)

if __name__ == "__main__":
    main()
