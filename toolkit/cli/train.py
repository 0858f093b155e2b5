"""`ptexport train`: rows -> a run. Needs the extra `train`."""

from pathlib import Path
from typing import Any

import click

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.cli import options as shared
from ptexport.toolkit.cli.sweep_axes import parse_axes
from ptexport.toolkit.methods import METHODS

SETTINGS = (
    *("lr", "backbone_lr", "lora_rank", "balance", "epochs", "batch_size", "accumulate", "autocast", "cache_mb"),
    *("patience", "seed"),
)
"""Options of `train` that are settings by the same name, with their own defaults."""


@click.command()
@click.option("--model", required=True, help="smollm2, minilm, a folder, or a name on the Hugging Face hub.")
@click.option("--revision", help="Branch, tag or commit of a model on the hub [default: main].")
@click.option("--data", required=True, help="Rows: a .jsonl or .csv file, hub:NAME[/CONFIG], or cities.")
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="p-tuning",
    show_default=True,
    help="What is trained; see docs/methods.md.",
)
@click.option("--tune-backbone", "train_backbone", is_flag=True, help="With p-tuning: train the language model too.")
@click.option("--template", required=True, help="For example '[P*3] {text} [P*3]'.")
@click.option(
    "--labels",
    help="name=word|word,name=word or a file of such lines; names alone for a linear head; vocab for every word of the "
    "vocabulary  [required but for cities]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--dev", type=click.Path(), help="Rows that choose the epoch [default: a part of --data].")
@click.option("--test", type=click.Path(), help="Rows to measure on [default: a part of --data].")
@click.option(
    "--head",
    type=click.Choice(["words", "linear"]),
    help="What reads the answer out [default: words; linear for fine-tune].",
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "first"]),
    help="What a linear head reads on a masked model [default: mean].",
)
@click.option(
    "--encoder",
    type=click.Choice(["lstm", "mlp", "none"]),
    help="What makes the virtual tokens [default: by method; lstm for p-tuning].",
)
@click.option(
    "--init",
    type=click.Choice(["random", "words"]),
    default="random",
    show_default=True,
    help="What virtual tokens without an encoder start from; words: the label words.",
)
@click.option(
    "--shots",
    "n_shots",
    type=click.IntRange(0),
    default=0,
    help="With manual: so many training rows and their answers stand before the template.",
)
@click.option("--prior-correction", is_flag=True, help="With manual: take from the logits what no content answers.")
@click.option("--manual", multiple=True, help="A hand-written template to compare with; may be repeated.")
@click.option("--max-length", type=click.IntRange(2), help="Most tokens in one row [default: 512, or the model's].")
@click.option(
    "--truncate",
    type=click.Choice(["longest", "text"]),
    default="longest",
    show_default=True,
    help="Which text of a pair is cut.",
)
@click.option("--strict", is_flag=True, help="Refuse texts longer than that instead of truncating them.")
@click.option("--calibrate", is_flag=True, help="Fit a temperature on dev, so that probabilities are honest.")
@click.option(
    "--abstain",
    type=shared.FiniteRange(0, 1, min_open=True),
    metavar="ACCURACY",
    help="Give no label where that would make fewer of the labelled dev rows right than this share, 0 to 1.",
)
@click.option(
    "--lr",
    type=shared.FiniteRange(0, min_open=True),
    help="Peak rate of virtual tokens and a linear head [default: by method and encoder].",
)
@click.option(
    "--backbone-lr",
    type=shared.FiniteRange(0, min_open=True),
    help="Peak rate of the language model, or of LoRA's updates [default: 2e-5, or 1e-3].",
)
@click.option("--lora-rank", type=click.IntRange(1), help="With lora: rank of its updates [default: 8].")
@click.option("--balance", is_flag=True, help="Weigh labels so that each counts alike, however few its rows.")
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the rows [default: 10].")
@click.option("--batch-size", type=click.IntRange(1), help="Rows run through the model at once [default: 8].")
@click.option("--accumulate", type=click.IntRange(1), help="Batches per step [default: 1].")
@click.option(
    "--autocast", type=click.Choice(["bf16"]), help="Compute training steps in bf16, for speed [default: fp32]."
)
@click.option(
    "--cache-mb",
    type=click.IntRange(0),
    help="Most memory for what a causal model makes of texts before the first [P], in MiB [default: 1024].",
)
@click.option("--patience", type=click.IntRange(1), help="Epochs without a better dev accuracy [default: 4].")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Of the split, the order and the first weights [default: 0]."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps …")
@click.option(
    "--sweep",
    "axes",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="Train every combination of method, template (one each time), rows, encoder, init, lr, backbone_lr, epochs, "
    "batch_size, seed; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on where a training with the same options stopped; begin if none has.")
@shared.force
@shared.as_json
@shared.log_file
def train(
    out: Path,
    labels: str | None,
    axes: tuple[str, ...],
    resume: bool,
    as_json: bool,
    log_file: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Train a soft prompt against a frozen language model, or what another method trains.

    Ctrl-C stops it with the best epoch so far; --resume goes on from there, or from where it was killed.
    """
    with shared.extra("train"):
        from ptexport.toolkit.cli import tables
        from ptexport.toolkit.cli.progress_bars import reporting, silence_libraries
        from ptexport.toolkit.data import cities
        from ptexport.toolkit.prompt import distributed
        from ptexport.toolkit.run.config import TrainConfig, TrainSettings
        from ptexport.toolkit.run.run import METRICS
        from ptexport.toolkit.training import sweep
        from ptexport.toolkit.training.train import train_into
    if labels is None:
        if options["data"] != "cities":
            raise click.UsageError("Missing option '--labels'.")
        labels = cities.labels(linear=(options["head"] or METHODS[options["method"]].heads[0]) == "linear")
    given = {name: options.pop(name) for name in SETTINGS}
    settings = TrainSettings(**{name: value for name, value in given.items() if value is not None})
    config = TrainConfig(labels=labels, settings=settings, **options)
    if force and (resume or axes):
        raise click.UsageError("--force goes neither with --resume nor with --sweep; remove the folder instead.")
    if axes and distributed.several():
        raise click.UsageError("--sweep is for one process; leave 'accelerate launch' out.")
    silence_libraries()
    with reporting(as_json=as_json, log_file=log_file) as report:
        if axes:
            outcomes = sweep.sweep(config, parse_axes(axes), out, report, resume=resume)
        else:
            run = train_into(out, config, report, resume=resume, force=force)
    if not distributed.is_first():
        return
    if axes:
        if as_json:
            click.echo((out / sweep.SWEEP).read_text(encoding="utf-8"), nl=False)
        else:
            tables.print_outcomes(outcomes, out)
        return
    if as_json:
        click.echo((out / METRICS).read_text(encoding="utf-8"), nl=False)
    else:
        tables.print_metrics(run, out)
    assert run.metrics is not None, "it was trained"
    if run.config.abstain is not None and run.metrics.abstain_below is None:
        raise TrainError(
            f"{out}: abstain {run.config.abstain}: even the surest dev rows are wrong more often; the run is there and "
            "always gives a label; train longer, or ask for less"
        )
    if run.metrics.stopped == "interrupted":
        raise TrainError(f"{out}: interrupted; holds the best of {run.metrics.epochs} epochs, go on with --resume")
    if run.metrics.stopped == "diverged":
        raise TrainError(f"{out}: the loss became no number; holds the best epoch before that, use a lower --lr")
