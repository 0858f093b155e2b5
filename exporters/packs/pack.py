"""One or several run folders -> a .ptpack file: export, compare with the model, and keep what is new for the tasks."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ptexport.exporters.config import ExportConfig, read_runs
from ptexport.exporters.export import export
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.targets.targets import TARGETS
from ptexport.runtime.errors import ExportError, disk_errors
from ptexport.runtime.packs.pack_file import Pack
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.store.files import check_absent, write_whole


def pack(config: ExportConfig, progress: Progress) -> Pack:
    """Export runs beside `config.out`, and write what is new for their tasks to that file.

    Raises:
        OutputError: the file exists, or cannot be written.
        ExportError: a run trained its backbone or has an open vocabulary; the target stores task arrays as constants;
            or as `export` raises it.
        RunError: a run cannot be read, or its backbone has changed since.
        ModelError: the backbone cannot be loaded.
        DataError: `config.rows` holds no rows, or rows with other texts than the template takes.
    """
    check_absent(config.out, force=config.force)
    joint = read_runs(config)
    _check_runs(joint, config)
    with disk_errors(config.out):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(prefix=f".{config.out.name}.", dir=config.out.parent)
    with place as name:
        folder = Path(name) / config.out.stem
        export(replace(config, out=folder, force=False), progress)
        metrics = [msgspec.to_builtins(run.metrics) for run in joint.runs.values()]
        made = Pack.of(folder, joint.first.config.facts.vocab, metrics)
        write_whole(config.out, made.to_bytes(), force=config.force)
    return made


def _check_runs(joint: JointTasks, config: ExportConfig) -> None:
    """Refuse runs and targets that no pack can be made for, before the work."""
    for path, run in zip(config.runs, joint.runs.values(), strict=True):
        if run.config.trained_backbone is not None:
            raise ExportError(f"{path}: its backbone was trained with it, need a frozen one; export it instead")
        if run.config.open_vocabulary:
            size = f"{run.arrays.label_weights.nbytes / 1e6:.0f} MB of label weights"
            raise ExportError(f"{path}: has an open vocabulary, {size}; export it instead")
    if not TARGETS[config.target].shares:
        why = "its graphs store the task arrays as constants, which a pack cannot replace"
        raise ExportError(f"target {config.target}: {why}; pack it for cpu or cuda, or export it instead")
