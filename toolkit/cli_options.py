"""What several commands of the command line share."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

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


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing package into a sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("ptexport"):
            raise
        raise MissingExtraError(f"this command needs the package {e.name!r}; pip install 'ptexport[{name}]'") from e
