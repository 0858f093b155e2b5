"""What several commands of the command line share."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ptexport.runtime.bundle.manifest import Precision, TargetName
from ptexport.runtime.errors import MissingExtraError


class FiniteRange(click.FloatRange):
    """A float in a range; `nan` and `inf` are in none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse what is no finite number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines; progress as JSON lines too.")
log_file = click.option(
    "--log-file", type=click.Path(path_type=Path), help="Append progress to this file as JSON lines."
)
require_signature = click.option(
    "--require-signature",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Refuse what is not signed with this public key, a PEM file.",
)
threads = click.option("--threads", type=click.IntRange(1), help="CPUs to use [default: all this process may use].")
_Command = TypeVar("_Command", bound=Callable[..., Any])
_OPENING = (
    click.option(
        "--provider",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Execution provider: cpu, cuda, tensorrt, ONNX Runtime's own name of another, or auto: CUDA where it "
        "runs, else the CPU. What is named is what runs, or the command fails.",
    ),
    click.option("--device", type=click.IntRange(0), default=0, help="Number of the GPU."),
    threads,
    click.option(
        "--cuda-graph", is_flag=True, help="Record what each shape of batch runs on the GPU, and play it back."
    ),
    click.option(
        "--build",
        type=click.Choice(["allowed", "never"]),
        default="allowed",
        help="Whether TensorRT may build an engine now, for minutes [default: allowed].",
    ),
    require_signature,
)


def opening(command: _Command) -> _Command:
    """Add the options that `Engine.open` takes, under its names."""
    for option in reversed(_OPENING):
        command = option(command)
    return command


target = click.option(
    "--target",
    type=click.Choice(get_args(TargetName)),
    default="cpu",
    show_default=True,
    help="What the graph is made for; see docs/export.md.",
)
_LOWERING = (
    click.option(
        "--precision",
        type=click.Choice(get_args(Precision)),
        default="fp32",
        show_default=True,
        help="What the graph computes in; see docs/precision.md.",
    ),
    click.option(
        "--max-accuracy-drop",
        type=FiniteRange(0, 100),
        metavar="POINTS",
        help="Most that a lower precision may lose on the rows [default: 0.5].",
    ),
    click.option(
        "--keep-fp32",
        multiple=True,
        metavar="auto|NAME",
        help="With int8, int8-dynamic, int4: keep in fp32 the products of weights so named, such as "
        "'*.down_proj.weight', or as few as needed; NAME may be repeated.",
    ),
)


def lowering(command: _Command) -> _Command:
    """Add the options that choose a precision; `lowered` reads them."""
    for option in reversed(_LOWERING):
        command = option(command)
    return command


def lowered(precision: Precision, max_accuracy_drop: float | None, keep_fp32: tuple[str, ...]) -> dict[str, Any]:
    """Make of them what `ExportConfig` takes under its names.

    Raises:
        UsageError: they do not go together.
    """
    if precision in ("fp32", "bf16") and max_accuracy_drop is not None:
        raise click.UsageError(f"--max-accuracy-drop: of {precision} none is measured; leave it out.")
    if "auto" in keep_fp32 and len(keep_fp32) > 1:
        raise click.UsageError("--keep-fp32: give auto, or names, not both.")
    options: dict[str, Any] = {"precision": precision, "keep_fp32": "auto" if keep_fp32 == ("auto",) else keep_fp32}
    return options if max_accuracy_drop is None else {**options, "max_accuracy_drop": max_accuracy_drop}


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing package into a sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("ptexport"):
            raise
        raise MissingExtraError(f"this command needs the package {e.name!r}; pip install 'ptexport[{name}]'") from e
