"""`--sweep NAME=VALUE,VALUE` -> values by option."""

from collections.abc import Sequence
from typing import Any

import click

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.cli.options import FiniteRange
from ptexport.toolkit.methods import METHODS
from ptexport.toolkit.template.template import MAX_PROMPT_TOKENS

_KINDS: dict[str, click.ParamType[Any]] = {
    "method": click.Choice(list(METHODS)),
    "template": click.STRING,
    "rows": click.IntRange(1, MAX_PROMPT_TOKENS),
    "encoder": click.Choice(["lstm", "mlp", "none"]),
    "init": click.Choice(["random", "words"]),
    "lr": FiniteRange(0, min_open=True),
    "backbone_lr": FiniteRange(0, min_open=True),
    "epochs": click.IntRange(1),
    "batch_size": click.IntRange(1),
    "seed": click.IntRange(0, 2**32 - 1),
}
"""Options that `--sweep` accepts; `rows` is the number of virtual tokens of a template with one group of them."""


def parse_axes(specs: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `name=value,value`. A template is a single value, since it may contain commas; repeat it for more.

    Raises:
        TrainError: the name is unknown, or a value has another type.
    """
    axes: dict[str, list[Any]] = {}
    for spec in specs:
        name, equals, values = spec.partition("=")
        kind = _KINDS.get(name)
        if kind is None or not equals:
            raise TrainError(f"sweep {spec!r}: need NAME=VALUE,VALUE with a name of {', '.join(_KINDS)}")
        for value in [values] if name == "template" else values.split(","):
            try:
                axes.setdefault(name, []).append(kind.convert(value, None, None))
            except click.BadParameter as e:
                why = e.message.removesuffix(".").replace("integer range", "integer")
                raise TrainError(f"sweep {spec!r}: {why}; correct the value") from e
    return axes
