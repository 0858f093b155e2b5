"""Options that several commands share."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ptexport.runtime.bundle.manifest import Precision, TargetName
from ptexport.runtime.errors import MissingExtraError
from ptexport.runtime.ort.known_plugins import DEVICE_KINDS
from ptexport.runtime.rows.columns import Columns


class FiniteRange(click.FloatRange):
    """A finite float in a range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert a value; usage errors for anything but a finite number in the range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def _device(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """Convert a kind of device, or the number of one; usage errors for anything else."""
    if value in DEVICE_KINDS:
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is not {', '.join(DEVICE_KINDS)} or a number.")
    return int(value)


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Split each KEY=VALUE; usage errors for one without a key."""
    pairs = [value.partition("=") for value in values]
    for (key, equals, _), value in zip(pairs, values, strict=True):
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.")
    return {key: value for key, _, value in pairs}


class BundleFolder(click.Path):
    """A bundle's folder; `hub:OWNER/NAME[@REVISION]` is downloaded into the cache."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the folder."""
        from ptexport.runtime.hub.pull import PREFIX, local_folder

        if ctx is not None and ctx.resilient_parsing:  # the shell completes a command
            return Path(value)
        if str(value).startswith(PREFIX):
            from ptexport.toolkit.cli.progress_bars import bars_on_terminals

            bars_on_terminals()
        return local_folder(value)


bundle = click.argument("bundle", type=BundleFolder())
bundles = click.argument("bundles", nargs=-1, required=True, type=BundleFolder())
private = click.option("--private", is_flag=True, help="Make the repository on the hub private.")
force = click.option("--force", is_flag=True, help="Replace the output if it exists.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and progress as JSON lines.")
log_file = click.option(
    "--log-file", type=click.Path(path_type=Path), help="Append progress to this file as JSON lines."
)
require_signature = click.option(
    "--require-signature",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Fail unless the bundle is signed with this public key, a PEM file.",
)
threads = click.option(
    "--threads", type=click.IntRange(1), help="Number of CPUs to use [default: all that this process may use]."
)
_Command = TypeVar("_Command", bound=Callable[..., Any])
_OPENING = (
    click.option(
        "--provider",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Execution provider: cpu, cuda, tensorrt, a plugin such as openvino or webgpu, ONNX Runtime's own name of "
        "another one, or auto: CUDA if it loads, else the CPU. The command fails if a named provider does not run the "
        "graph.",
    ),
    click.option(
        "--device",
        default="0",
        callback=_device,
        metavar="N|gpu|npu|cpu",
        help="Number of the GPU; for a plugin a kind of device, or a number in its list (see doctor) [default: 0].",
    ),
    click.option(
        "--provider-option",
        "provider_options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_pairs,
        help="An option of the provider itself, under its own name; repeatable.",
    ),
    threads,
    click.option("--cuda-graph", is_flag=True, help="Record a CUDA graph per batch shape and replay it."),
    click.option(
        "--build",
        type=click.Choice(["allowed", "never"]),
        default="allowed",
        help="Whether TensorRT may build an engine now, which takes minutes [default: allowed].",
    ),
    require_signature,
)


def opening(command: _Command) -> _Command:
    """Add the options of `Engine.open`, named as its arguments."""
    for option in reversed(_OPENING):
        command = option(command)
    return command


_COLUMNS = (
    click.option(
        "--columns",
        metavar="PART=NAME,…",
        help="Columns of the rows, such as text=title,text_b=description,label=class; numbers from 1, if the file has "
        "no header. PART is text, text_b, choices or label [default: as in training, which reads columns of these "
        "names].",
    ),
    click.option(
        "--text-format", metavar="FORMAT", help="Text made of several columns, such as '{title}. {description}'."
    ),
    click.option("--text-b-format", metavar="FORMAT", help="The same for the second text of a pair."),
    click.option(
        "--label-names",
        metavar="NAMES",
        help="Names for the values of the label column, such as 1=world,2=sports; names alone are for 0, 1, …",
    ),
)


def columns(command: _Command) -> _Command:
    """Add the options about the columns of rows, which `columns_parser` reads."""
    for option in reversed(_COLUMNS):
        command = option(command)
    return command


def columns_parser(options: dict[str, Any]) -> Callable[[Columns], Columns]:
    """Take the options of `columns` out of others; returns a function that puts them over what a bundle reads.

    Raises:
        DataError: an option is not as described in its help.
    """
    given = [options.pop(name) for name in ("columns", "text_format", "text_b_format", "label_names")]
    Columns.parse(*given)
    return lambda base: Columns.parse(*given, base=base)


def has_columns(options: dict[str, Any]) -> bool:
    """Return whether an option of `columns` is given."""
    return any(options[name] is not None for name in ("columns", "text_format", "text_b_format", "label_names"))


verbose = click.option("-v", "--verbose", is_flag=True, help="Show the messages of Transformers and PyTorch too.")

target = click.option(
    "--target",
    type=click.Choice(get_args(TargetName)),
    default="cpu",
    show_default=True,
    help="Deployment target of the graph; see docs/export.md.",
)
_LOWERING = (
    click.option(
        "--precision",
        type=click.Choice(get_args(Precision)),
        default="fp32",
        show_default=True,
        help="Precision of the graph; see docs/precision.md.",
    ),
    click.option(
        "--max-accuracy-drop",
        type=FiniteRange(0, 100),
        metavar="POINTS",
        help="Largest drop in accuracy on the check rows that a lower precision may cost [default: 0.5].",
    ),
    click.option(
        "--keep-fp32",
        multiple=True,
        metavar="auto|NAME",
        help="With int8 and int4: multiply the weights of this name in fp32, such as '*.down_proj.weight'; repeatable. "
        "auto: as few weights as needed.",
    ),
)


def lowering(command: _Command) -> _Command:
    """Add the options of a lower precision, which `lowered` reads."""
    for option in reversed(_LOWERING):
        command = option(command)
    return command


def lowered(precision: Precision, max_accuracy_drop: float | None, keep_fp32: tuple[str, ...]) -> dict[str, Any]:
    """Convert the options of `lowering` to arguments of `ExportConfig`.

    Raises:
        UsageError: the options do not go together.
    """
    if precision in ("fp32", "bf16") and max_accuracy_drop is not None:
        raise click.UsageError(f"--max-accuracy-drop: no drop is measured in {precision}; leave it out.")
    if "auto" in keep_fp32 and len(keep_fp32) > 1:
        raise click.UsageError("--keep-fp32: give auto or names, not both.")
    options: dict[str, Any] = {"precision": precision, "keep_fp32": "auto" if keep_fp32 == ("auto",) else keep_fp32}
    return options if max_accuracy_drop is None else {**options, "max_accuracy_drop": max_accuracy_drop}


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Raise a MissingExtraError for a package that cannot be imported in the block.

    Args:
        name: name of the extra that has the package.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("ptexport"):
            raise
        raise MissingExtraError(f"this command needs the package {e.name!r}; pip install 'ptexport[{name}]'") from e
