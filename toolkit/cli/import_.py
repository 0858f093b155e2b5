"""`ptexport import`: a checkpoint trained elsewhere -> a run. Needs the extra `train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.toolkit.run.run import Run


@click.group("import")
def import_() -> None:
    """Import what was trained elsewhere as a run; 'export' also does it in one go."""


_out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
_max_length = click.option(
    "--max-length", type=click.IntRange(2), help="Maximum tokens per row [default: 512, or the model's]."
)
_rows = click.option(
    "--rows", type=click.Path(path_type=Path), help="Rows to check parity on [default: the built-in cities]."
)


@import_.command("peft")
@click.argument("adapter", metavar="DIR", type=click.Path(path_type=Path))
@_out
@click.option("--model", help="smollm2, minilm, a folder, or a name on the hub [default: the base model in DIR].")
@click.option(
    "--labels",
    help="CAUSAL_LM: name=word|word,name=word, a file of such lines, or vocab; required. SEQ_CLS: names, in the order "
    "of the outputs [default: the model's].",
)
@click.option(
    "--template", help="CAUSAL_LM: template without virtual tokens, such as '{text} it was' [default: {text}]."
)
@_max_length
@_rows
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def peft(adapter: Path, as_json: bool, log_file: Path | None, verbose: bool, **options: Any) -> None:
    """Import a PEFT checkpoint, and compare the run with PEFT's forward pass.

    Supports P_TUNING, PROMPT_TUNING, PREFIX_TUNING and LORA for SEQ_CLS and CAUSAL_LM.
    """
    with shared.extra("train"):
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
        from ptexport.toolkit.imports.source import check_adapter

        _check_out(options)
        check_adapter(adapter)
        with reporting(as_json=as_json, log_file=log_file) as progress:
            progress.stage("loading PyTorch")
            from ptexport.toolkit.imports.import_peft import import_peft
            from ptexport.toolkit.imports.peft_plan import ImportConfig

            if not verbose:
                silence_libraries()
            run = import_peft(ImportConfig(adapter=adapter, **options), progress)
    _print(run, options["out"], as_json=as_json)


@import_.command("classifier")
@click.argument("classifier", metavar="DIR")
@_out
@click.option("--labels", help="Names in the order of the outputs, or a file of them [default: the model's].")
@click.option(
    "--template",
    help="'{text}', or '{text} {text_b}' for pairs; the tokenizer of the classifier adds its own special tokens "
    "[default: {text}].",
)
@_max_length
@_rows
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def classifier(as_json: bool, log_file: Path | None, verbose: bool, **options: Any) -> None:
    """Import a text classifier, and compare the run with Transformers.

    DIR is the folder or the hub name of an AutoModelForSequenceClassification that gives a text one of several labels.
    """
    with shared.extra("train"):
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries

        _check_out(options)
        with reporting(as_json=as_json, log_file=log_file) as progress:
            progress.stage("loading PyTorch")
            from ptexport.toolkit.imports.import_classifier import ClassifierConfig, import_classifier

            if not verbose:
                silence_libraries()
            run = import_classifier(ClassifierConfig(**options), progress)
    _print(run, options["out"], as_json=as_json)


def _check_out(options: dict[str, Any]) -> None:
    from ptexport.toolkit.run.run import POSSIBLE_FILES
    from ptexport.toolkit.store.folders import check_free

    check_free(options["out"], force=options["force"], files=POSSIBLE_FILES)


def _print(run: "Run", out: Path, *, as_json: bool) -> None:
    from ptexport.toolkit.cli import tables
    from ptexport.toolkit.run.run import CONFIG

    if as_json:
        click.echo((out / CONFIG).read_text(encoding="utf-8"), nl=False)
    else:
        tables.print_import(run, out)
