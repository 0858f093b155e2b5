"""One training for each combination of some options, their runs side by side in a folder, and the best of them.

OUT/NAME/      the run of one combination; NAME tells the options
OUT/best       a link to the one with the highest dev accuracy
OUT/sweep.json what was asked for, and a row for each run that is done
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ptexport.runtime.errors import (
    OutputError,
    PtexportError,
    TrainError,
    reason,
    saying_what_the_disk_refused,
)
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.store.files import write_whole
from ptexport.toolkit.training.config import check_templates, settle
from ptexport.toolkit.training.plan import load_backbone_for
from ptexport.toolkit.training.train import train_into

SWEEP = "sweep.json"
BEST = "best"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a sweep.

    Attributes:
        name: its folder.
        failed: why there is none, or none to choose; None: it is there.
        dev_accuracy: share right, which chooses the best.
        test_accuracy: share right.
        epochs: passes over the training rows.
        train_seconds: wall time of its loop.
    """

    name: str
    failed: str | None = None
    dev_accuracy: float = 0.0
    test_accuracy: float = 0.0
    epochs: int = 0
    train_seconds: float = 0.0


def sweep(
    base: TrainConfig, axes: Mapping[str, Sequence[Any]], out: Path, progress: Progress, *, resume: bool
) -> list[Outcome]:
    """Train every combination, each into a folder of its own; those that are there already stay.

    Args:
        base: what all have in common.
        axes: values by option, as `parse_axes` gives them.
        out: the folder; with `resume` it may be there.
        progress: told of all of them.
        resume: go on with a sweep that was stopped.

    Returns:
        One outcome for each combination, the highest dev accuracy first.

    Raises:
        OutputError: the folder is there, is of another sweep, or cannot be written.
        TrainError: a training was interrupted, or all failed.
        ModelError: the backbone cannot be loaded.
    """
    asked = msgspec.json.decode(msgspec.json.encode({"base": base, "axes": axes}))
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    configs = {_name(options, axes): _with(base, options) for options in combinations}
    for config in configs.values():
        check_templates(*settle(config))
    if out.exists() and not resume:
        raise OutputError(f"{out}: exists already; choose another name, or go on with --resume")
    _check_asked(out / SWEEP, asked)
    with saying_what_the_disk_refused(out):
        out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    if not (out / SWEEP).exists():
        _record(out, asked, outcomes)
    backbones: dict[Head, Backbone] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        progress.note(f"run {number} of {len(configs)}: {name}")
        _, choice = settle(config)
        if choice.head not in backbones:
            backbones[choice.head] = load_backbone_for(config, progress)
        try:
            metrics = train_into(out / name, config, progress, resume=True, backbone=backbones[choice.head]).metrics
        except OutputError:
            raise  # of the folder they all are in
        except PtexportError as e:
            progress.warning(str(e))
            outcomes.append(Outcome(name=name, failed=str(e)))
        else:
            assert metrics is not None, "it was trained"
            if metrics.stopped == "interrupted":
                raise TrainError(f"{out / name}: interrupted; go on with --resume")
            outcomes.append(_outcome(name, config, metrics))
        outcomes.sort(key=lambda outcome: (outcome.failed is not None, -outcome.dev_accuracy))
        _record(out, asked, outcomes)
    if outcomes[0].failed is not None:
        raise TrainError(f"{out}: every run failed, the first with: {outcomes[0].failed}")
    return outcomes


def _check_asked(path: Path, asked: dict[str, Any]) -> None:
    if not path.exists():
        return
    try:
        same = msgspec.json.decode(path.read_bytes())["asked"] == asked
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as e:
        raise OutputError(f"{path}: cannot be read ({reason(e)}); choose another folder") from e
    if not same:
        raise OutputError(f"{path}: is of another sweep; give the same options, or choose another name")


def _name(options: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> str:
    """Name a folder; a template by its number, from 1."""
    return ",".join(
        f"{name}={axes[name].index(value) + 1 if name == 'template' else value}" for name, value in options.items()
    )


def _with(base: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    options = dict(options)
    template = options.pop("template", base.template)
    if "rows" in options:
        template = _with_rows(template, options.pop("rows"))
    of_settings = {name: options.pop(name) for name in list(options) if name in TrainSettings.__struct_fields__}
    settings = msgspec.structs.replace(base.settings, **of_settings)
    return dataclasses.replace(base, template=template, settings=settings, **options)


def _with_rows(template: str, rows: int) -> str:
    groups = re.findall(r"\[P(?:\*\d+)?\]", template)
    if len(groups) != 1:
        raise TrainError(
            f"sweep rows: template {template!r} has {len(groups)} groups of virtual tokens, need one; "
            "sweep template=… instead"
        )
    return template.replace(groups[0], f"[P*{rows}]")


def _outcome(name: str, config: TrainConfig, metrics: Metrics) -> Outcome:
    failed = "the loss became no number" if metrics.stopped == "diverged" else None
    if config.abstain is not None and metrics.abstain_below is None:
        failed = f"even its surest dev rows are wrong more often than --abstain {config.abstain} allows"
    return Outcome(
        name=name,
        failed=failed,
        dev_accuracy=metrics.dev_accuracy,
        test_accuracy=metrics.test_accuracy,
        epochs=metrics.epochs,
        train_seconds=metrics.train_seconds,
    )


def _record(out: Path, asked: dict[str, Any], outcomes: list[Outcome]) -> None:
    content = msgspec.json.format(msgspec.json.encode({"asked": asked, "outcomes": outcomes}), indent=2)
    write_whole(out / SWEEP, content + b"\n", force=True)
    if outcomes and outcomes[0].failed is None:
        with saying_what_the_disk_refused(out / BEST, "remove it if it is no link, or use a disk that knows links"):
            link = out / f".{BEST}"
            link.unlink(missing_ok=True)
            link.symlink_to(outcomes[0].name)
            link.replace(out / BEST)
