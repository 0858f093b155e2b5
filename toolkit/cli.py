"""The command line. Each command imports what it needs when it runs, so that `predict` and `serve` need no torch."""

import contextlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from ptexport.runtime.errors import MissingExtraError, PtexportError, TrainError

_force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def main() -> None:
    """Run the command line: exit code 0 on success, 1 on a failure, 2 on wrong use."""
    try:
        cli(prog_name="ptexport")
    except PtexportError as e:
        click.echo(f"ptexport: {e}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("ptexport"))
def cli() -> None:
    """Train soft prompts on a frozen language model and serve them as one ONNX classifier."""


@cli.command()
@click.option("--model", required=True, help="smollm2, minilm, a folder, or a name on the Hugging Face hub.")
@click.option("--data", required=True, help="Rows: a .jsonl or .csv file, hub:NAME[/CONFIG], or cities.")
@click.option("--template", required=True, help="For example '[P*3] {text} [P*3]'.")
@click.option("--labels", help="name=word|word,name=word or a file of such lines; names alone for a linear head.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--dev", type=click.Path(), help="Rows that choose the epoch [default: a part of --data].")
@click.option("--test", type=click.Path(), help="Rows to measure on [default: a part of --data].")
@click.option("--head", type=click.Choice(["words", "linear"]), default="words", show_default=True)
@click.option(
    "--pool",
    type=click.Choice(["mean", "first"]),
    help="What a linear head reads on a masked model [default: mean].",
)
@click.option("--encoder", type=click.Choice(["lstm", "mlp", "none"]), default="lstm", show_default=True)
@click.option(
    "--init",
    type=click.Choice(["random", "words"]),
    default="random",
    show_default=True,
    help="What plain rows (--encoder none) start from; words: the label words.",
)
@click.option("--manual", multiple=True, help="A hand-written template to compare with; may be repeated.")
@click.option("--max-length", type=click.IntRange(2), help="Most tokens in one row [default: 512, or the model's].")
@click.option(
    "--truncate",
    type=click.Choice(["longest", "text"]),
    default="longest",
    show_default=True,
    help="Which text of a pair is cut.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak rate [default: by encoder].")
@click.option("--epochs", type=click.IntRange(1), help="Most passes over the rows [default: 10].")
@click.option("--batch-size", type=click.IntRange(1), help="Rows per step [default: 8].")
@click.option("--patience", type=click.IntRange(1), help="Epochs without a better dev accuracy [default: 4].")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Of the split, the order and the first weights [default: 0]."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps …")
@click.option("--resume", is_flag=True, help="Go on where a training with the same options stopped; begin if none has.")
@_force
@_json
def train(out: Path, labels: str | None, resume: bool, as_json: bool, force: bool, **options: Any) -> None:
    """Train a soft prompt against a frozen language model.

    Ctrl-C stops it with the best epoch so far; --resume goes on from there, or from where it was killed.
    """
    with _extra("train"):
        from ptexport.toolkit import cities, progress
        from ptexport.toolkit.folders import kept_folder
        from ptexport.toolkit.run import FILES, METRICS, RESUME, Run, TrainSettings
        from ptexport.toolkit.train import DEFAULT_LR, TrainConfig
        from ptexport.toolkit.train import train as run_training
    if labels is None:
        if options["data"] != "cities":
            raise click.UsageError("Missing option '--labels'.")
        labels = cities.labels(linear=options["head"] == "linear")
    given = {name: options.pop(name) for name in ("lr", "epochs", "batch_size", "patience", "seed")}
    given["lr"] = given["lr"] or DEFAULT_LR[options["encoder"]]
    settings = TrainSettings(**{name: value for name, value in given.items() if value is not None})
    config = TrainConfig(labels=labels, settings=settings, **options)
    if resume and force:
        raise click.UsageError("Give --resume or --force, one of the two.")
    if resume and (out / METRICS).is_file() and not (out / RESUME).exists():
        run = Run.read(out)
    else:
        place = kept_folder(out, resume=resume, force=force, files=(*FILES, RESUME), state=RESUME)
        with place as folder, progress.reporting() as report:
            run = run_training(config, report, state=folder / RESUME)
            run.write(folder)
            if run.metrics.stopped is None:
                (folder / RESUME).unlink()
    if as_json:
        click.echo((out / METRICS).read_text(encoding="utf-8"), nl=False)
    else:
        progress.print_metrics(run, out)
    if run.metrics.stopped == "interrupted":
        raise TrainError(f"{out}: interrupted; holds the best of {run.metrics.epochs} epochs, go on with --resume")
    if run.metrics.stopped == "diverged":
        raise TrainError(f"{out}: the loss became no number; holds the best epoch before that, use a lower --lr")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@click.option("--opset", type=click.Choice(["18", "23"]), default="18", show_default=True, help="23: native attention.")
@click.option("--rows", type=click.Path(path_type=Path), help="Rows to check parity on [default: the run's own].")
@_force
@_json
def export(run: Path, out: Path, opset: str, rows: Path | None, as_json: bool, force: bool) -> None:
    """Bake a run into an ONNX bundle, and prove that it answers as the model does."""
    with _extra("train"):
        from ptexport.exporters.export import ExportConfig
        from ptexport.exporters.export import export as run_export
        from ptexport.toolkit import progress
    config = ExportConfig(run=run, out=out, opset=int(opset), rows=rows, force=force)
    with progress.reporting() as report:
        manifest = run_export(config, report)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
    else:
        progress.print_parity(manifest, out)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option(
    "--input", "rows", type=click.Path(path_type=Path), help="A .jsonl or .csv file of rows instead of TEXTS."
)
@click.option("--output", type=click.Path(path_type=Path), help="Where the answers go, as JSONL [default: printed].")
@click.option("--threads", type=click.IntRange(1), help="CPUs to use [default: all this process may use].")
@_force
@_json
def predict(
    bundle: Path,
    texts: tuple[str, ...],
    rows: Path | None,
    output: Path | None,
    threads: int | None,
    as_json: bool,
    force: bool,
) -> None:
    """Label TEXTS, or the rows of a file; for a pair template, two TEXTS make one row."""
    from ptexport.runtime import Engine
    from ptexport.runtime.rows import Row, read_rows
    from ptexport.runtime.streaming import json_line, predict_rows, write_lines

    if bool(texts) == (rows is not None):
        raise click.UsageError("Give TEXTS or --input, one of the two.")
    engine = Engine.open(bundle, threads=threads)
    width = len(engine.manifest.fields)
    if len(texts) % width:
        raise click.UsageError(f"The template takes {width} texts a row; got {len(texts)}.")
    typed = [
        Row(where="TEXTS", text=t[0], text_b=t[1] if width == 2 else None)
        for t in zip(*[iter(texts)] * width, strict=True)
    ]
    answers = predict_rows(engine, typed if rows is None else read_rows(rows))
    if output is not None:
        write_lines(output, (json_line(*answer) for answer in answers), force=force)
    elif as_json or rows is not None:
        for answer in answers:
            click.echo(json_line(*answer), nl=False)
    else:
        for row, prediction in answers:
            score = prediction.probabilities[prediction.label]
            click.echo(f"{prediction.label}\t{score:.3f}\t{row.text}" + (f"\t{row.text_b}" if width == 2 else ""))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free one.")
@click.option("--threads", type=click.IntRange(1), help="CPUs to use [default: all this process may use].")
@_json
def serve(bundle: Path, host: str, port: int, threads: int | None, as_json: bool) -> None:
    """Serve a bundle over HTTP: the Open Inference Protocol, and POST /predict."""
    with _extra("serve"):
        from ptexport.runtime.server import serve as run_server
    from ptexport.runtime import Engine

    engine = Engine.open(bundle, threads=threads)
    name = engine.manifest.name

    def ready(url: str) -> None:
        record = {"url": url, "model": name}
        click.echo(json.dumps(record) if as_json else f"serving {name} on {url} (Ctrl-C stops it)")

    with _extra("serve"):  # uvicorn loads its event loop and parser when it starts
        run_server(engine, host=host, port=port, on_ready=ready)


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing package into a sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("ptexport"):
            raise
        raise MissingExtraError(f"this command needs the package {e.name!r}; pip install 'ptexport[{name}]'") from e
