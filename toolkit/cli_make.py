"""The commands that make things: train, import and export. They need the extra `train`."""

from pathlib import Path
from typing import Any

import click

from ptexport.runtime.errors import TrainError
from ptexport.runtime.manifest import Precision
from ptexport.toolkit import cli_options as shared
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
@click.option("--tune-backbone", is_flag=True, help="With p-tuning: train the language model too.")
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
        from ptexport.toolkit import cities, processes, progress, sweep, tables
        from ptexport.toolkit.asked import TrainConfig
        from ptexport.toolkit.run import METRICS, TrainSettings
        from ptexport.toolkit.train import train_into
    if labels is None:
        if options["data"] != "cities":
            raise click.UsageError("Missing option '--labels'.")
        labels = cities.labels(linear=(options["head"] or METHODS[options["method"]].heads[0]) == "linear")
    given = {name: options.pop(name) for name in SETTINGS}
    settings = TrainSettings(**{name: value for name, value in given.items() if value is not None})
    config = TrainConfig(labels=labels, settings=settings, **options)
    if force and (resume or axes):
        raise click.UsageError("--force goes neither with --resume nor with --sweep; remove the folder instead.")
    if axes and processes.several():
        raise click.UsageError("--sweep is for one process; leave 'accelerate launch' out.")
    progress.silence_libraries()
    with progress.reporting(as_json=as_json, log_file=log_file) as report:
        if axes:
            outcomes = sweep.sweep(config, sweep.parse_axes(axes), out, report, resume=resume)
        else:
            run = train_into(out, config, report, resume=resume, force=force)
    if not processes.is_first():
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


@click.group("import")
def import_() -> None:
    """Make a run of what was trained elsewhere."""


@import_.command("peft")
@click.argument("adapter", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--model", help="smollm2, minilm, a folder, or a name on the hub [default: the one DIR names].")
@click.option(
    "--labels",
    help="CAUSAL_LM: name=word|word,name=word, such a file, or vocab; required. SEQ_CLS: names, in the order of "
    "the outputs [default: the model's].",
)
@click.option("--template", help="CAUSAL_LM: the text and words around it, as '{text} it was' [default: {text}].")
@click.option("--max-length", type=click.IntRange(2), help="Most tokens in one row [default: 512, or the model's].")
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to check parity on [default: the built-in cities].")
@shared.force
@shared.as_json
@shared.log_file
def import_peft(adapter: Path, as_json: bool, log_file: Path | None, **options: Any) -> None:
    """Make a run of a PEFT checkpoint, proved against PEFT's own forward pass.

    Takes P_TUNING, PROMPT_TUNING, PREFIX_TUNING and LORA for SEQ_CLS and CAUSAL_LM.
    """
    with shared.extra("train"):
        from ptexport.toolkit import progress, tables
        from ptexport.toolkit.import_peft import import_peft as run_import
        from ptexport.toolkit.peft_plan import ImportConfig
        from ptexport.toolkit.run import CONFIG
    config = ImportConfig(adapter=adapter, **options)
    progress.silence_libraries()
    with progress.reporting(as_json=as_json, log_file=log_file) as report:
        run = run_import(config, report)
    if as_json:
        click.echo((config.out / CONFIG).read_text(encoding="utf-8"), nl=False)
    else:
        tables.print_import(run, config.out)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@shared.target
@click.option("--opset", type=click.Choice(["18", "23"]), help="23: native attention [default: by target].")
@click.option("--tune", is_flag=True, help="Time the graphs that the target takes on this machine; take the fastest.")
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to check parity on [default: the run's own].")
@shared.lowering
@shared.force
@shared.as_json
@shared.log_file
def export(
    runs: tuple[Path, ...],
    out: Path,
    opset: str | None,
    rows: Path | None,
    tune: bool,
    as_json: bool,
    log_file: Path | None,
    precision: Precision,
    max_accuracy_drop: float | None,
    keep_fp32: tuple[str, ...],
    **options: Any,
) -> None:
    """Bake a run into an ONNX bundle, and prove that it answers as the model does.

    Several RUNS on one frozen backbone make one bundle, where each is a task with the name of its folder.
    """
    with shared.extra("train"):
        from ptexport.exporters.export import ExportConfig
        from ptexport.exporters.export import export as run_export
        from ptexport.exporters.tasks import export_tasks
        from ptexport.toolkit import progress, tables
    for option, given in (("--rows", rows is not None), ("--tune", tune), ("--precision", precision != "fp32")):
        if given and len(runs) > 1:
            raise click.UsageError(f"{option} goes with one run; several are checked on their own rows, in fp32.")
    lowered = shared.lowered(precision, max_accuracy_drop, keep_fp32)
    options["opset"] = None if opset is None else int(opset)
    progress.silence_libraries()
    if len(runs) > 1:
        with progress.reporting(as_json=as_json, log_file=log_file) as report:
            tasks = export_tasks(runs, out, report, **options)
        if as_json:
            click.echo(tasks.to_json(), nl=False)
        else:
            tables.print_tasks(tasks, out)
        return
    config = ExportConfig(run=runs[0], out=out, rows=rows, tune=tune, **lowered, **options)
    with progress.reporting(as_json=as_json, log_file=log_file) as report:
        manifest = run_export(config, report)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        tables.print_parity(manifest, out)
