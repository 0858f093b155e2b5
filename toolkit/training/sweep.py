"""Inputs of every combination of options -> one run each, side by side in a folder."""

from collections.abc import Mapping
from pathlib import Path

from ptexport.runtime.errors import OutputError, PtexportError, TrainError
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.inputs import Inputs
from ptexport.toolkit.training.plan import load_backbone_for
from ptexport.toolkit.training.sweep_table import Outcome, SweepTable
from ptexport.toolkit.training.train import train_into


def sweep(inputs: Mapping[str, Inputs], table: SweepTable, progress: Progress) -> list[Outcome]:
    """Train every combination into a folder of its own; finished runs stay.

    Args:
        inputs: inputs of each combination, by the name of its folder.
        table: table of the sweep.
        progress: receives the events of all trainings.

    Returns:
        One outcome per combination, the highest dev accuracy first.

    Raises:
        OutputError: the folder cannot be written.
        TrainError: a training was interrupted, or all trainings failed.
        ModelError: the backbone cannot be loaded.
    """
    backbones: dict[Head | None, Backbone] = {}
    for number, (name, own) in enumerate(inputs.items(), 1):
        progress.note(f"run {number} of {len(inputs)}: {name}")
        head = own.config.head
        if head not in backbones:
            backbones[head] = load_backbone_for(own, progress)
        table.add(_train(name, own, table.out, progress, backbones[head]))
    if table.outcomes[0].failed is not None:
        raise TrainError(f"{table.out}: every run failed, the first with: {table.outcomes[0].failed}")
    return table.outcomes


def _train(name: str, inputs: Inputs, out: Path, progress: Progress, backbone: Backbone) -> Outcome:
    """Train one combination; a training that fails becomes a failed outcome.

    Raises:
        OutputError: the folder of the sweep cannot be written.
        TrainError: the training was interrupted.
    """
    try:
        run = train_into(out / name, inputs, progress, resume=True, backbone=backbone)
    except OutputError:
        raise
    except PtexportError as e:
        progress.warning(str(e))
        return Outcome(name=name, failed=str(e))
    assert run.metrics is not None, "it was trained"
    if run.metrics.stopped == "interrupted":
        raise TrainError(f"{out / name}: {run.shortfall}")
    return _outcome(name, run)


def _outcome(name: str, run: Run) -> Outcome:
    assert run.metrics is not None, "it was trained"
    return Outcome(
        name=name,
        failed=run.shortfall,
        dev_accuracy=run.metrics.dev_accuracy,
        test_accuracy=run.metrics.test_accuracy,
        epochs=run.metrics.epochs,
        train_seconds=run.metrics.train_seconds,
    )
