"""The values of some options -> one configuration per combination, and the table of their outcomes. Needs no PyTorch.

OUT/NAME/      the run of one combination; NAME contains the options
OUT/best       a symbolic link to the run with the highest dev accuracy
OUT/sweep.json the configuration, the values, and one outcome per finished run
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ptexport.runtime.errors import OutputError, TrainError, disk_errors, reason
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.store.files import write_whole

SWEEP = "sweep.json"
BEST = "best"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a sweep.

    Attributes:
        name: name of its folder.
        failed: why there is no run, or why it cannot be the best; None: it succeeded.
        dev_accuracy: dev accuracy, 0 to 1, which chooses the best run.
        test_accuracy: test accuracy, 0 to 1.
        epochs: passes over the training rows.
        train_seconds: wall time of the training loop.
    """

    name: str
    failed: str | None = None
    dev_accuracy: float = 0.0
    test_accuracy: float = 0.0
    epochs: int = 0
    train_seconds: float = 0.0


class SweepTable:
    """`sweep.json` and the link to the best run.

    Args:
        out: folder of the sweep, created if necessary.
        base: options that all trainings share.
        axes: values by option, as `parse_axes` returns them.
        resume: whether the folder may exist.

    Attributes:
        out: folder of the sweep.
        outcomes: outcomes so far, the highest dev accuracy first.

    Raises:
        OutputError: the folder exists, holds another sweep, or cannot be written.
    """

    def __init__(self, out: Path, base: TrainConfig, axes: Mapping[str, Sequence[Any]], *, resume: bool) -> None:
        check_new(out, resume=resume)
        self.outcomes: list[Outcome] = []
        self.out = out
        self._options = msgspec.json.decode(msgspec.json.encode({"base": base, "axes": axes}))
        _check_options(out / SWEEP, self._options)
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        if not (out / SWEEP).exists():
            self._write()

    def add(self, outcome: Outcome) -> None:
        """Add an outcome, and write the table and the link again."""
        self.outcomes.append(outcome)
        self.outcomes.sort(key=lambda outcome: (outcome.failed is not None, -outcome.dev_accuracy))
        self._write()

    def _write(self) -> None:
        record = {"options": self._options, "outcomes": self.outcomes}
        content = msgspec.json.format(msgspec.json.encode(record), indent=2)
        write_whole(self.out / SWEEP, content + b"\n", force=True)
        if self.outcomes and self.outcomes[0].failed is None:
            best = self.out / BEST
            advice = "remove it if it is not a link, or use a file system with symbolic links"
            with disk_errors(best, advice):
                link = self.out / f".{BEST}"
                link.unlink(missing_ok=True)
                link.symlink_to(self.outcomes[0].name)
                link.replace(best)


def read_outcomes(out: Path) -> list[Outcome]:
    """Read the outcomes of a sweep, the highest dev accuracy first."""
    return msgspec.convert(msgspec.json.decode((out / SWEEP).read_bytes())["outcomes"], list[Outcome])


def check_new(out: Path, *, resume: bool) -> None:
    """Check that a folder is free for a sweep.

    Raises:
        OutputError: it exists, and `resume` is not set.
    """
    if out.exists() and not resume:
        raise OutputError(f"{out}: exists already; choose another name, or continue with --resume")


def _check_options(path: Path, options: dict[str, Any]) -> None:
    if not path.exists():
        return
    try:
        same = msgspec.json.decode(path.read_bytes())["options"] == options
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as e:
        raise OutputError(f"{path}: cannot be read ({reason(e)}); choose another folder") from e
    if not same:
        raise OutputError(f"{path}: belongs to another sweep; give the same options, or choose another name")


def combine(base: TrainConfig, axes: Mapping[str, Sequence[Any]]) -> dict[str, TrainConfig]:
    """Return one configuration per combination of values, by the name of its folder."""
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return {_name(options, axes): _with(base, options) for options in combinations}


def _name(options: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> str:
    """Name a folder by its options; a template by its number, from 1."""
    return ",".join(
        f"{name}={axes[name].index(value) + 1 if name == 'template' else value}" for name, value in options.items()
    )


def _with(base: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    options = dict(options)
    template = options.pop("template", base.template)
    if "rows" in options:
        if template is None:
            raise TrainError("sweep rows: got no template, need one with one group of virtual tokens; give --template")
        template = _with_virtual_tokens(template, options.pop("rows"))
    of_settings = {name: options.pop(name) for name in list(options) if name in TrainSettings.__struct_fields__}
    settings = msgspec.structs.replace(base.settings, **of_settings)
    return msgspec.structs.replace(base, template=template, settings=settings, **options)


def _with_virtual_tokens(template: str, count: int) -> str:
    """Set the number of virtual tokens of a template with one group of them."""
    groups = re.findall(r"\[P(?:\*\d+)?\]", template)
    if len(groups) != 1:
        raise TrainError(
            f"sweep rows: template {template!r} has {len(groups)} groups of virtual tokens, need one; "
            "sweep template=… instead"
        )
    return template.replace(groups[0], f"[P*{count}]")
