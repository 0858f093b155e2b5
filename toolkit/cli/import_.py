"""`ptexport import`: a checkpoint trained elsewhere -> a run. Needs the extra `train`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ptexport.runtime.rows.columns import Columns
from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.toolkit.imports.config import ImportConfig
    from ptexport.toolkit.imports.inputs import AdapterInputs, ClassifierInputs
    from ptexport.toolkit.progress import Progress
    from ptexport.toolkit.run.run import Run

    ImportInputs = AdapterInputs | ClassifierInputs


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
@click.argument("source", metavar="DIR")
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
@shared.columns
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def peft(**options: Any) -> None:
    """Import a PEFT checkpoint, and compare the run with PEFT's forward pass.

    Supports P_TUNING, PROMPT_TUNING, PREFIX_TUNING and LORA for SEQ_CLS and CAUSAL_LM.
    """
    _import("adapter", **options)


@import_.command("classifier")
@click.argument("source", metavar="DIR")
@_out
@click.option("--labels", help="Names in the order of the outputs, or a file of them [default: the model's].")
@click.option(
    "--template",
    help="'{text}', or '{text} {text_b}' for pairs; the tokenizer of the classifier adds its own special tokens "
    "[default: {text}].",
)
@_max_length
@_rows
@shared.columns
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def classifier(**options: Any) -> None:
    """Import a text classifier, and compare the run with Transformers.

    DIR is the folder or the hub name of an AutoModelForSequenceClassification that gives a text one of several labels.
    """
    _import("classifier", **options)


def _import(
    kind: Literal["adapter", "classifier"],
    *,
    rows: Path | None,
    as_json: bool,
    log_file: Path | None,
    verbose: bool,
    **options: Any,
) -> None:
    put_over = columns_of_rows(options, rows)
    columns = None if put_over is None else put_over(Columns())
    with shared.extra("train"):
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
        from ptexport.toolkit.imports.config import ImportConfig

        config = ImportConfig(rows=rows, columns=columns, **options)
        with reporting(as_json=as_json, log_file=log_file) as progress:
            inputs = read_source(kind, config, progress)
            progress.stage("loading PyTorch")
            if not verbose:
                silence_libraries()
            run = make_run(inputs, progress)
    _print(run, config.out, as_json=as_json)


def columns_of_rows(options: dict[str, Any], rows: Path | None) -> Callable[[Columns], Columns] | None:
    """Take the options about columns out of others; None: none is given. See `shared.columns_parser`.

    Raises:
        DataError: an option is not as described in its help.
        UsageError: there are no rows that have such columns.
    """
    given = shared.has_columns(options)
    if given and rows is None:
        raise click.UsageError("The options about columns go with --rows FILE; give both or neither.")
    put_over = shared.columns_parser(options)
    return put_over if given else None


def read_source(kind: Literal["adapter", "classifier"], config: "ImportConfig", progress: "Progress") -> "ImportInputs":
    """Check the options of an import, and find its files; without PyTorch."""
    from ptexport.toolkit.imports.inputs import read_adapter, read_classifier

    return read_adapter(config, progress) if kind == "adapter" else read_classifier(config, progress)


def make_run(inputs: "ImportInputs", progress: "Progress") -> "Run":
    """Import an adapter or a classifier; loads PyTorch."""
    from ptexport.toolkit.imports.inputs import AdapterInputs

    if isinstance(inputs, AdapterInputs):
        from ptexport.toolkit.imports.import_peft import import_peft

        return import_peft(inputs, progress)
    from ptexport.toolkit.imports.import_classifier import import_classifier

    return import_classifier(inputs, progress)


def _print(run: "Run", out: Path, *, as_json: bool) -> None:
    from ptexport.toolkit.cli import tables
    from ptexport.toolkit.run.run import CONFIG

    if as_json:
        click.echo((out / CONFIG).read_text(encoding="utf-8"), nl=False)
    else:
        tables.print_import(run, out)
