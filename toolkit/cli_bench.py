"""The commands that measure: `ptexport bench …`. Each makes a report: JSON, Markdown and a page."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ptexport.runtime.errors import BenchError
from ptexport.toolkit import cli_options as shared

if TYPE_CHECKING:
    from ptexport.toolkit.bench.report import Report

_Command = TypeVar("_Command", bound=Callable[..., object])


@click.group()
def bench() -> None:
    """Measure a bundle on this machine, beside what people would use instead."""


def reported(command: _Command) -> _Command:
    """Add the options of every bench that makes a report."""
    out = click.option(
        "--out", required=True, type=click.Path(path_type=Path), help="Folder to make for report.json, .md and .html."
    )
    for option in (shared.log_file, shared.as_json, shared.force, out):
        command = option(command)
    return command


def prepare(out: Path, *, force: bool) -> None:
    """Refuse what cannot be written, or drawn, before the work rather than after it."""
    from ptexport.toolkit.bench.pages import FILES
    from ptexport.toolkit.folders import check_free

    with shared.extra("bench"):
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    check_free(out, force=force, files=FILES)


def finish(out: Path, report: "Report", *, force: bool, as_json: bool) -> None:
    """Write the report and print it."""
    import msgspec

    from ptexport.toolkit.bench.pages import write_report
    from ptexport.toolkit.bench.report import HTML
    from ptexport.toolkit.bench.show import show

    write_report(out, report, force=force)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        show(report)
        click.echo(f"{out / HTML}")


@bench.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    default="",
    metavar="NAMES",
    help="What to compare it with, by comma: names of systems (see docs/benchmarks.md), and other bundles' folders.",
)
@click.option("--run", type=click.Path(path_type=Path), help="The run it was exported from; systems by name need it.")
@click.option("--quick", is_flag=True, help="Three sizes and fewer turns: a minute, once rivals are in the cache.")
@click.option("--threads", type=click.IntRange(1), help="CPUs that each may use [default: all this process may use].")
@reported
def speed(
    bundle: Path,
    against: str,
    run: Path | None,
    out: Path,
    threads: int | None,
    log_file: Path | None,
    *,
    quick: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Time BUNDLE against PEFT, Transformers, other exports and other bundles, in turn, on this machine's CPUs."""
    prepare(out, force=force)
    from ptexport.runtime.bundle import MODEL
    from ptexport.toolkit.bench.speed import SpeedConfig, bench_speed
    from ptexport.toolkit.progress import reporting

    with shared.extra("train"):
        import onnx_ir as ir

        from ptexport.exporters.summary import summarize_graph
    names = [name.strip() for name in against.split(",") if name.strip()]

    def flops_of(n_ids: int) -> int | None:
        return summarize_graph(ir.load(bundle / MODEL), n_ids).flops

    config = SpeedConfig(bundle=bundle, against=names, run=run, threads=threads, quick=quick, command=command_line())
    with reporting(as_json=as_json, log_file=log_file) as progress:
        report = bench_speed(config, flops_of, progress)
    finish(out, report, force=force, as_json=as_json)


def command_line() -> str:
    """What was typed."""
    return shlex.join(["ptexport", *sys.argv[1:]])


@bench.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--band",
    type=shared.FiniteRange(0, 100),
    default=15,
    show_default=True,
    metavar="PERCENT",
    help="What a median may be off before it counts as changed; not of accuracies, whose intervals decide.",
)
@shared.as_json
def compare(old: Path, new: Path, band: float, *, as_json: bool) -> None:
    """Say what changed beyond noise between two reports; exit code 1 if anything got worse or is gone."""
    import dataclasses

    import msgspec

    from ptexport.toolkit.bench.compare import compare as compare_reports
    from ptexport.toolkit.bench.report import Report
    from ptexport.toolkit.bench.show import show_comparison

    comparison = compare_reports(Report.read(old), Report.read(new), band=band / 100)
    if as_json:
        click.echo(msgspec.json.encode(dataclasses.asdict(comparison)))
    else:
        show_comparison(comparison)
    if comparison.only_old:
        raise BenchError(f"{new}: lacks {', '.join(comparison.only_old)} of {old}; measure the same")
    if comparison.worse:
        names = ", ".join(compared.name for compared in comparison.worse)
        raise BenchError(f"{new}: worse than {old} beyond noise in {names}; measure again, or find what changed")


@bench.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A .jsonl or .csv file of rows with labels."
)
@click.option("--quick", is_flag=True, help="Fewer turns; accuracy is always of all rows.")
@click.option("--threads", type=click.IntRange(1), help="CPUs that each may use [default: all this process may use].")
@reported
def quality(
    bundles: tuple[Path, ...],
    data: Path,
    out: Path,
    threads: int | None,
    log_file: Path | None,
    *,
    quick: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Hold BUNDLES of one task, in other precisions or of other methods, against the first: accuracy, size, speed."""
    prepare(out, force=force)
    from ptexport.toolkit.bench.quality import QualityConfig, bench_quality
    from ptexport.toolkit.progress import reporting

    config = QualityConfig(bundles=bundles, data=data, threads=threads, quick=quick, command=command_line())
    with reporting(as_json=as_json, log_file=log_file) as progress:
        report = bench_quality(config, progress.rows)
    finish(out, report, force=force, as_json=as_json)


@bench.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Fewer clients, rounds and seconds: a minute.")
@click.option(
    "--threads", type=click.IntRange(1), help="CPUs that the server may use [default: all this process may use]."
)
@reported
def serve(
    bundle: Path, out: Path, threads: int | None, log_file: Path | None, *, quick: bool, as_json: bool, force: bool
) -> None:
    """Serve BUNDLE on this machine's CPUs and ask it over HTTP from another process: throughput, latency, queueing."""
    with shared.extra("install"):
        import filelock  # noqa: F401
        import safetensors  # noqa: F401
    prepare(out, force=force)
    with shared.extra("serve"):
        import uvicorn  # noqa: F401 - here, so that the server's process need not say it

        from ptexport.toolkit.bench.serve import FULL, QUICK, measure
    from ptexport.runtime.bundle import Bundle
    from ptexport.runtime.cpus import available_cpus
    from ptexport.toolkit.bench.serve_report import serve_report
    from ptexport.toolkit.progress import reporting

    manifest = Bundle.open(bundle).manifest
    threads = min(threads or available_cpus(), available_cpus())
    plan = QUICK if quick else FULL
    with reporting(as_json=as_json, log_file=log_file) as progress:
        progress.stage("opening the bundle")
        results = measure(bundle, plan, threads=threads, report=progress.rows)
    report = serve_report(
        results,
        plan,
        title=f"{manifest.name}: serve",
        command=command_line(),
        bundles={f"{manifest.name}, {manifest.graph.precision}": manifest.digest},
        threads=threads,
    )
    finish(out, report, force=force, as_json=as_json)


@bench.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Texts in a call.")
@click.option(
    "--tokens", type=click.IntRange(1), default=28, show_default=True, help="Of each text, the prompt not counted."
)
@click.option("--threads", type=click.IntRange(1), help="CPUs to use [default: all this process may use].")
@reported
def profile(
    bundle: Path,
    batch: int,
    tokens: int,
    out: Path,
    threads: int | None,
    log_file: Path | None,
    *,
    as_json: bool,
    force: bool,
) -> None:
    """Show where BUNDLE's time goes on this machine's CPUs: by kind of operator, by layer, and outside of both."""
    prepare(out, force=force)
    from ptexport.runtime.bundle import MODEL
    from ptexport.toolkit.bench.profile import ProfileConfig
    from ptexport.toolkit.bench.profile_report import bench_profile
    from ptexport.toolkit.progress import reporting

    with shared.extra("train"):
        import onnx_ir as ir

        from ptexport.exporters.parts import Flow, place_of_nodes

    def places_of() -> dict[str, tuple[str, int | None]]:
        places = place_of_nodes(Flow(list(ir.load(bundle / MODEL).graph)))
        return {name: (place.name, place.layer) for name, place in places.items()}

    config = ProfileConfig(bundle=bundle, batch=batch, tokens=tokens, threads=threads, command=command_line())
    with reporting(as_json=as_json, log_file=log_file) as progress:
        report = bench_profile(config, places_of, progress.rows)
    finish(out, report, force=force, as_json=as_json)
