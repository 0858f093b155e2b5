"""`ptexport import`: a PEFT checkpoint -> a run. Needs the extra `train`."""

from pathlib import Path
from typing import Any

import click

from ptexport.toolkit.cli import options as shared


@click.group("import")
def import_() -> None:
    """Import prompts and adapters that were trained elsewhere."""


@import_.command("peft")
@click.argument("adapter", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--model", help="smollm2, minilm, a folder, or a name on the hub [default: the base model in DIR].")
@click.option(
    "--labels",
    help="CAUSAL_LM: name=word|word,name=word, a file of such lines, or vocab; required. SEQ_CLS: names, in the order "
    "of the outputs [default: the model's].",
)
@click.option(
    "--template", help="CAUSAL_LM: template without virtual tokens, such as '{text} it was' [default: {text}]."
)
@click.option("--max-length", type=click.IntRange(2), help="Maximum tokens per row [default: 512, or the model's].")
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to check parity on [default: the built-in cities].")
@shared.force
@shared.as_json
@shared.log_file
def import_peft(adapter: Path, as_json: bool, log_file: Path | None, **options: Any) -> None:
    """Import a PEFT checkpoint, and compare the run with PEFT's forward pass.

    Supports P_TUNING, PROMPT_TUNING, PREFIX_TUNING and LORA for SEQ_CLS and CAUSAL_LM.
    """
    with shared.extra("train"):
        from ptexport.toolkit.cli import tables
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
        from ptexport.toolkit.peft.import_run import import_peft as run_import
        from ptexport.toolkit.peft.plan import ImportConfig
        from ptexport.toolkit.run.run import CONFIG
    config = ImportConfig(adapter=adapter, **options)
    silence_libraries()
    with reporting(as_json=as_json, log_file=log_file) as progress:
        run = run_import(config, progress)
    if as_json:
        click.echo((config.out / CONFIG).read_text(encoding="utf-8"), nl=False)
    else:
        tables.print_import(run, config.out)
