"""The commands `ptexport bench …`. Each writes a report as JSON, Markdown and HTML, except `compare`."""

import functools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptexport.runtime.errors import BenchError
from ptexport.toolkit.cli import options as shared

if TYPE_CHECKING:
    from ptexport.toolkit.bench.report import BenchReport
    from ptexport.toolkit.progress import Progress


@click.group()
def bench() -> None:
    """Measure a bundle on this machine and compare it with alternatives."""


_quick = click.option(
    "--quick",
    is_flag=True,
    help="Take a minute or two: fewer sizes, rounds, clients and seconds; accuracy is always of all rows.",
)


def reported(measure: "Callable[..., BenchReport]") -> Callable[..., None]:
    """Make a command that writes and prints the report of `measure`, with the options that all benches have.

    Args:
        measure: takes the progress, its own arguments and options, and `threads` by name.
    """

    @functools.wraps(measure)
    def command(out: Path, log_file: Path | None, *, as_json: bool, force: bool, **given: object) -> None:
        _check_output(out, force=force)
        from ptexport.toolkit.cli.progress_bars import reporting

        with reporting(as_json=as_json, log_file=log_file) as progress:
            report = measure(progress, **given)
        _write(out, report, force=force, as_json=as_json)

    out_option = click.option(
        "--out",
        required=True,
        type=click.Path(path_type=Path),
        help="Folder to create for report.json, report.md and report.html.",
    )
    for option in (shared.log_file, shared.as_json, shared.force, out_option, shared.threads):
        command = option(command)
    return command


def _check_output(out: Path, *, force: bool) -> None:
    """Check before the measurement that the report can be written and its plots drawn."""
    from ptexport.toolkit.bench.pages import FILES
    from ptexport.toolkit.store.folders import check_free

    with shared.extra("bench"):
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    check_free(out, force=force, files=FILES)


def _write(out: Path, report: "BenchReport", *, force: bool, as_json: bool) -> None:
    """Write the report and print it."""
    import msgspec

    from ptexport.toolkit.bench.pages import write_report
    from ptexport.toolkit.bench.report import HTML
    from ptexport.toolkit.bench.terminal import print_report

    write_report(out, report, force=force)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        print_report(report)
        click.echo(f"{out / HTML}")


def _command_line() -> str:
    """Return the command line of this process."""
    return shlex.join(["ptexport", *sys.argv[1:]])


@bench.command()
@shared.bundle
@click.option(
    "--against",
    default="",
    metavar="NAMES",
    help="Systems to compare with, separated by commas: names (see docs/benchmarks.md) or other bundles.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Run that the bundle was exported from; required for most systems by name.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Execution provider of all systems, and PyTorch's device. We have not run CUDA yet.",
)
@click.option(
    "--sizes",
    metavar="SIZES",
    help="Sizes to measure, texts per call x tokens per text, such as 1x28,128x100 [default: 1, 8 and 32 texts of 8, "
    "28, 100 and 250 tokens; with --quick three of these].",
)
@_quick
@reported
def speed(
    progress: "Progress",
    bundle: Path,
    against: str,
    run: Path | None,
    provider: str,
    sizes: str | None,
    threads: int | None,
    *,
    quick: bool,
) -> "BenchReport":
    """Compare the latency and memory of BUNDLE with PEFT, Transformers, other exports and other bundles."""
    from ptexport.runtime.bundle.folder import MODEL
    from ptexport.runtime.hub.pull import PREFIX, local_folder
    from ptexport.toolkit.bench.speed.report import Cost
    from ptexport.toolkit.bench.speed.speed import SpeedConfig, bench_speed

    with shared.extra("train"):
        import onnx_ir as ir

        from ptexport.exporters.inspect.summary import summarize_graph
    given = [name.strip() for name in against.split(",") if name.strip()]
    names = [str(local_folder(name)) if name.startswith(PREFIX) else name for name in given]

    def cost_of(n_ids: int) -> Cost | None:
        summary = summarize_graph(ir.load(bundle / MODEL), n_ids)
        if summary.flops is None:
            return None
        return Cost(summary.flops, sum(part.size_bytes for part in summary.parts if part.name != "embeddings"))

    config = SpeedConfig(
        bundle=bundle,
        against=names,
        run=run,
        threads=threads,
        provider=provider,
        quick=quick,
        sizes=None if sizes is None else _sizes(sizes),
        command=_command_line(),
    )
    return bench_speed(config, cost_of, progress)


def _sizes(given: str) -> list[tuple[int, int]]:
    """Read sizes such as 1x28,8x100."""
    found = [re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", size.strip()) for size in given.split(",")]
    if None in found:
        raise click.UsageError(f"--sizes {given}: need texts x tokens, such as 1x28,128x100.")
    return [(int(size[1]), int(size[2])) for size in found if size is not None]


@bench.command()
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the results; a step with one is kept."
)
@click.option(
    "--bundles",
    "folders",
    default="",
    metavar="FOLDERS",
    help="Bundles, or folders of bundles and the `run` they are of, separated by commas [default: bundles of SmolLM2 "
    "and MiniLM are made].",
)
@click.option(
    "--only", default="", metavar="STEPS", help="Run these steps, even again: names or patterns, separated by commas."
)
@click.option("--seconds", type=shared.FiniteRange(1), help="Time after which no step goes on.")
@click.option(
    "--provider",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cpu: a rehearsal, which proves nothing.",
)
@shared.as_json
@shared.log_file
def gpu(
    out: Path, folders: str, only: str, seconds: float | None, provider: str, log_file: Path | None, *, as_json: bool
) -> None:
    """Prove step by step that a GPU runs bundles with the logits of Transformers, and measure how fast.

    Exit code 0 only where a GPU was proved. We have not run it on a GPU yet; see docs/gpu.md.
    """
    with shared.extra("bench"):
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    import msgspec

    from ptexport.toolkit.bench.gpu.proof import REPORT, ProofConfig, prove
    from ptexport.toolkit.bench.report import HTML
    from ptexport.toolkit.cli.progress_bars import reporting

    config = ProofConfig(
        out=out,
        bundles=[Path(name) for name in folders.split(",") if name],
        only=[name for name in only.split(",") if name],
        seconds=seconds,
        provider=provider,
        command=_command_line(),
    )
    with reporting(as_json=as_json, log_file=log_file) as progress:
        proof = prove(config, progress)
    if as_json:
        click.echo(msgspec.json.encode(proof.report))
    else:
        for result in proof.results:
            click.echo(result.line)
        click.echo(f"{proof.report.verdict[0]}\n{out / REPORT / HTML}")
    if proof.unproved is not None:
        raise BenchError(f"{out}: no GPU is proved, need one that passes ({proof.unproved}); see docs/gpu.md")


@bench.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--band",
    type=shared.FiniteRange(0, 100),
    default=15,
    show_default=True,
    metavar="PERCENT",
    help="Noise band: a median within it counts as unchanged. Not used for accuracies, for which intervals decide.",
)
@shared.as_json
def compare(old: Path, new: Path, band: float, *, as_json: bool) -> None:
    """List the figures that changed beyond noise between two reports; exit code 1 if one got worse or is missing."""
    import dataclasses

    import msgspec

    from ptexport.toolkit.bench.compare import compare as compare_reports
    from ptexport.toolkit.bench.report import BenchReport
    from ptexport.toolkit.bench.terminal import print_comparison

    comparison = compare_reports(BenchReport.read(old), BenchReport.read(new), band=band / 100)
    if as_json:
        click.echo(msgspec.json.encode(dataclasses.asdict(comparison)))
    else:
        print_comparison(comparison)
    if comparison.only_old:
        raise BenchError(f"{new}: lacks {', '.join(comparison.only_old)} of {old}; measure the same systems and sizes")
    if comparison.worse:
        names = ", ".join(change.name for change in comparison.worse)
        raise BenchError(f"{new}: worse than {old} beyond noise in {names}; measure again, or find what changed")


@bench.command()
@shared.bundles
@click.option("--data", required=True, help="Labelled rows, as for evaluate.")
@shared.columns
@_quick
@reported
def quality(
    progress: "Progress", bundles: tuple[Path, ...], data: str, threads: int | None, *, quick: bool, **options: Any
) -> "BenchReport":
    """Compare BUNDLES of one task, of other precisions or methods, with the first: accuracy, size and latency."""
    from ptexport.runtime.bundle.folder import Bundle
    from ptexport.toolkit.bench.quality.quality import QualityConfig, bench_quality
    from ptexport.toolkit.bench.synthetic_texts import only_task

    columns = shared.columns_parser(options)(only_task(Bundle.open(bundles[0])).columns)
    config = QualityConfig(
        bundles=bundles, data=data, columns=columns, threads=threads, quick=quick, command=_command_line()
    )
    return bench_quality(config, progress)


@bench.command()
@shared.bundle
@_quick
@reported
def serve(progress: "Progress", bundle: Path, threads: int | None, *, quick: bool) -> "BenchReport":
    """Serve BUNDLE on this machine's CPUs and send HTTP requests from another process, up to 10 times its capacity."""
    with shared.extra("install"):
        import filelock  # noqa: F401
        import safetensors  # noqa: F401
    with shared.extra("serve"):
        import uvicorn  # noqa: F401 - a clear message here instead of in the server's process

        from ptexport.toolkit.bench.serve.plan import ServeConfig
        from ptexport.toolkit.bench.serve.report import bench_serve
    return bench_serve(ServeConfig(bundle=bundle, threads=threads, quick=quick, command=_command_line()), progress)


@bench.command()
@shared.bundle
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Texts per call.")
@click.option(
    "--tokens", type=click.IntRange(1), default=28, show_default=True, help="Tokens of each text, without the prompt."
)
@reported
def profile(progress: "Progress", bundle: Path, batch: int, tokens: int, threads: int | None) -> "BenchReport":
    """Profile BUNDLE on this machine's CPUs: time by operator type, by layer, and outside ONNX Runtime."""
    from ptexport.runtime.bundle.folder import MODEL
    from ptexport.toolkit.bench.profile.profile import ProfileConfig
    from ptexport.toolkit.bench.profile.report import bench_profile

    with shared.extra("train"):
        import onnx_ir as ir

        from ptexport.exporters.inspect.parts import Flow, place_of_nodes

    def parts_of() -> dict[str, tuple[str, int | None]]:
        places = place_of_nodes(Flow(list(ir.load(bundle / MODEL).graph)))
        return {name: (place.name, place.layer) for name, place in places.items()}

    config = ProfileConfig(bundle=bundle, batch=batch, tokens=tokens, threads=threads, command=_command_line())
    return bench_profile(config, parts_of, progress)
