"""`ptexport train`: rows -> a run. Needs the extra `train`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.cli import options as shared
from ptexport.toolkit.cli.sweep_axes import parse_axes
from ptexport.toolkit.methods import METHODS
from ptexport.toolkit.prompt import distributed

if TYPE_CHECKING:
    from ptexport.toolkit.cli.progress_bars import ProgressBars
    from ptexport.toolkit.run.config import TrainConfig  # needs the extra `train`
    from ptexport.toolkit.training.inputs import Inputs

SETTINGS = (
    *("lr", "backbone_lr", "lora_rank", "balance", "epochs", "batch_size", "accumulate", "autocast", "cache_mb"),
    *("patience", "seed"),
)
"""Options that are fields of `TrainSettings` with the same name; it has their defaults."""


@click.command()
@click.option("--model", required=True, help="smollm2, minilm, a folder, or a name on the Hugging Face hub.")
@click.option("--revision", help="Branch, tag or commit of a model on the hub [default: main].")
@click.option(
    "--data",
    required=True,
    help="Rows: a CSV, JSON, Parquet or Arrow file, - for standard input, hub:NAME[/CONFIG], or cities.",
)
@shared.columns
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="p-tuning",
    show_default=True,
    help="Training method; see docs/methods.md.",
)
@click.option("--tune-backbone", "train_backbone", is_flag=True, help="With p-tuning: train the language model too.")
@click.option("--template", help="For example '[P*3] {text} [P*3]' [default: by model, head and texts].")
@click.option(
    "--labels",
    help="name=word|word,name=word or a file of such lines; names alone for a linear head, or if they are their own "
    "words; vocab for every word of the vocabulary [default: the labels of the rows].",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--dev", type=click.Path(), help="Rows that choose the epoch [default: a part of --data].")
@click.option("--test", type=click.Path(), help="Rows to measure the accuracy on [default: a part of --data].")
@click.option(
    "--head",
    type=click.Choice(["words", "linear"]),
    help="Label words, or a linear layer [default: by method, model and labels].",
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "first"]),
    help="Pooling of a linear head on a masked model [default: mean].",
)
@click.option(
    "--encoder",
    type=click.Choice(["lstm", "mlp", "none"]),
    help="Prompt encoder, which computes the virtual tokens [default: by method; lstm for p-tuning].",
)
@click.option(
    "--init",
    type=click.Choice(["random", "words"]),
    default="random",
    show_default=True,
    help="Initial values of virtual tokens without an encoder; words: the label words.",
)
@click.option(
    "--shots",
    "n_shots",
    type=click.IntRange(0),
    default=0,
    help="With manual: number of training rows to put before the template, with their label words.",
)
@click.option(
    "--prior-correction",
    "contextual_calibration",
    is_flag=True,
    help="With manual: contextual calibration; subtract the logits for content-free inputs.",
)
@click.option("--manual", multiple=True, help="A hand-written template to compare with; may be repeated.")
@click.option("--max-length", type=click.IntRange(2), help="Maximum tokens per row [default: 512, or the model's].")
@click.option(
    "--truncate",
    type=click.Choice(["longest", "text"]),
    default="longest",
    show_default=True,
    help="Which text of a pair is truncated.",
)
@click.option("--strict", is_flag=True, help="Reject texts longer than --max-length instead of truncating them.")
@click.option(
    "--calibrate", is_flag=True, help="Fit a temperature on the dev rows, so that probabilities are calibrated."
)
@click.option(
    "--abstain",
    type=shared.FiniteRange(0, 1, min_open=True),
    metavar="ACCURACY",
    help="Give no label to rows of low probability, so that the labelled dev rows reach this accuracy, 0 to 1.",
)
@click.option(
    "--lr",
    type=shared.FiniteRange(0, min_open=True),
    help="Peak learning rate of virtual tokens and a linear head [default: by method and encoder].",
)
@click.option(
    "--backbone-lr",
    type=shared.FiniteRange(0, min_open=True),
    help="Peak learning rate of the language model [default: 2e-5; LoRA: 1e-3].",
)
@click.option("--lora-rank", type=click.IntRange(1), help="With lora: rank of the updates [default: 8].")
@click.option("--balance", is_flag=True, help="Weigh labels in the loss inversely to their number of rows.")
@click.option(
    "--epochs", type=click.IntRange(1), help="Maximum passes over the training rows [default: by their number]."
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows per forward pass [default: 8].")
@click.option("--accumulate", type=click.IntRange(1), help="Batches per optimizer step [default: 1].")
@click.option(
    "--autocast", type=click.Choice(["bf16"]), help="Compute training steps in bf16, for speed [default: fp32]."
)
@click.option(
    "--cache-mb",
    type=click.IntRange(0),
    help="Maximum memory for cached keys and values of texts before the first [P], in MiB [default: 1024].",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Epochs without a better dev accuracy before stopping [default: by the number of epochs].",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the split, the order of rows and the initial weights [default: 0].",
)
@click.option("--device", default="auto", show_default=True, help="Training device: auto, cpu, cuda, cuda:1, mps …")
@click.option(
    "--sweep",
    "axes",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="Train every combination of values of method, template (one value per --sweep), rows, encoder, init, lr, "
    "backbone_lr, epochs, batch_size and seed; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Resume an interrupted training with the same options, or start one.")
@shared.force
@shared.as_json
@shared.log_file
@shared.verbose
def train(
    out: Path,
    axes: tuple[str, ...],
    resume: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Train a soft prompt for a frozen language model, or use another training method.

    What is not given is chosen, and printed as the full command.

    Ctrl-C stops the training and keeps the best epoch so far. --resume continues after Ctrl-C or a kill.
    """
    _check_usage(options["data"], axes, resume=resume, force=force)
    with shared.extra("train"):
        from ptexport.toolkit.cli.progress_bars import reporting

        config, values = _config(options), parse_axes(axes)
        with reporting(as_json=as_json, log_file=log_file, quiet=not distributed.is_rank_0()) as progress:
            if axes:
                _sweep(config, values, out, progress, resume=resume, verbose=verbose)
            else:
                _train(config, out, progress, resume=resume, force=force, verbose=verbose)
    if distributed.is_rank_0():
        _print(out, is_sweep=bool(axes), as_json=as_json)


def _check_usage(data: str, axes: tuple[str, ...], *, resume: bool, force: bool) -> None:
    """Raise UsageError for options that do not go together."""
    if force and (resume or axes):
        raise click.UsageError("--force cannot be used with --resume or --sweep; remove the folder instead.")
    if data == "-" and distributed.is_distributed():
        raise click.UsageError("--data - is for one process, since several cannot share standard input; give a file.")
    if axes and distributed.is_distributed():
        raise click.UsageError("--sweep is for one process; leave 'accelerate launch' out.")


def _train(
    config: "TrainConfig", out: Path, progress: "ProgressBars", *, resume: bool, force: bool, verbose: bool
) -> None:
    from ptexport.toolkit.training.inputs import check_out, read_inputs

    check_out(out, resume=resume, force=force)
    inputs = read_inputs(config, progress)
    progress.choice(f"full command: {full_command(inputs, out)}")
    _load_pytorch(progress, verbose=verbose)
    from ptexport.toolkit.training.train import train_into

    train_into(out, inputs, progress, resume=resume, force=force)


def _sweep(
    config: "TrainConfig",
    values: dict[str, list[Any]],
    out: Path,
    progress: "ProgressBars",
    *,
    resume: bool,
    verbose: bool,
) -> None:
    from ptexport.toolkit.training.inputs import read_inputs, read_source
    from ptexport.toolkit.training.sweep_table import SweepTable, check_new, combine

    check_new(out, resume=resume)
    configs, source = combine(config, values), read_source(config, progress)
    inputs = {name: read_inputs(each, progress, source) for name, each in configs.items()}
    _load_pytorch(progress, verbose=verbose)
    from ptexport.toolkit.training.sweep import sweep

    sweep(inputs, SweepTable(out, config, values, resume=resume), progress)


def _load_pytorch(progress: "ProgressBars", *, verbose: bool) -> None:
    from ptexport.toolkit.cli.progress_bars import silence_libraries

    progress.stage("loading PyTorch")
    if not verbose:
        silence_libraries()


def _print(out: Path, *, is_sweep: bool, as_json: bool) -> None:
    """Print what was trained.

    Raises:
        TrainError: the training fell short of its options.
    """
    from ptexport.toolkit.cli import tables
    from ptexport.toolkit.run.run import METRICS, Run
    from ptexport.toolkit.training.sweep_table import SWEEP, read_outcomes

    if as_json:
        click.echo((out / (SWEEP if is_sweep else METRICS)).read_text(encoding="utf-8"), nl=False)
    if is_sweep:
        if not as_json:
            tables.print_outcomes(read_outcomes(out), out)
        return
    run = Run.read(out)
    if not as_json:
        tables.print_metrics(run, out)
    if run.shortfall is not None:
        raise TrainError(f"{out}: {run.shortfall}")


def _config(options: dict[str, Any]) -> "TrainConfig":
    """Build the configuration from the command-line options."""
    from ptexport.runtime.rows.columns import Columns
    from ptexport.toolkit.run.config import TrainConfig, TrainSettings

    columns = shared.columns_parser(options)(Columns())
    settings = {name: value for name in SETTINGS if (value := options.pop(name)) is not None}
    return TrainConfig(settings=TrainSettings(**settings), columns=columns, **options)


def full_command(inputs: "Inputs", out: Path) -> str:
    """Return the command that trains the same without anything left to choose.

    Labels with one of the separators of --labels in their names are left to be read from the rows again.
    """
    from ptexport.toolkit.run.config import TrainSettings

    config = inputs.config
    fixed = msgspec.structs.asdict(TrainSettings())
    settings = {name: value for name, value in msgspec.structs.asdict(config.settings).items() if value != fixed[name]}
    options = {**msgspec.structs.asdict(config), **settings, **config.columns.options()}
    options |= {"labels": config.labels or inputs.verbalizer.spec, "out": out}
    if inputs.method.virtual_token is None:
        options["encoder"] = None  # the method does not use prompt encoders
    words = ["ptexport", "train"]
    for parameter in train.params:
        value = options.get(parameter.name or "")
        if value is None or value == parameter.default or value == ():
            continue
        name = max(parameter.opts, key=len)
        if isinstance(parameter, click.Option) and parameter.is_flag:
            words += [name] * bool(value)
        else:
            words += [word for each in (value if parameter.multiple else [value]) for word in (name, str(each))]
    return shlex.join(words)
