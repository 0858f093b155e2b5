"""A run folder -> a .ptpack file: export, prove, and keep what is new for the task."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ptexport.exporters.export import ExportConfig, export
from ptexport.exporters.packs.pack_file import Pack
from ptexport.exporters.targets.targets import TARGETS
from ptexport.runtime.errors import ExportError, OutputError, saying_what_the_disk_refused
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.files import write_whole

_CONSTANTS = "its graphs hold arrays of the task as constants, where a pack cannot put others"


def pack(config: ExportConfig, progress: Progress) -> Pack:
    """Export a run beside `config.out`, and write what is new for its task there.

    Raises:
        OutputError: the file exists, or cannot be written.
        ExportError: the run's backbone was trained with it, or its labels are a vocabulary; or graphs for the target or
            in the precision have constants where others have the task's arrays; or as `export` raises it.
        RunError: the run cannot be read, or its backbone is not the one trained on.
        ModelError: its backbone cannot be loaded.
        DataError: `config.rows` holds none, or others than the template takes.
    """
    if config.out.exists() and not config.force:
        raise OutputError(f"{config.out}: exists already; choose another name, or replace it with --force")
    run = Run.read(config.runs[0])
    if run.config.trained_backbone is not None:
        raise ExportError(f"{config.runs[0]}: its backbone was trained with it, need a frozen one; export it instead")
    if run.config.open_vocabulary:
        raise ExportError(
            f"{config.runs[0]}: its labels are a vocabulary, {run.arrays.label_weights.nbytes / 1e6:.0f} MB; "
            "export it instead"
        )
    if not TARGETS[config.target].shares:
        raise ExportError(f"target {config.target}: {_CONSTANTS}; pack it for cpu or cuda, or export it instead")
    with saying_what_the_disk_refused(config.out):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(prefix=f".{config.out.name}.", dir=config.out.parent)
    with place as name:
        folder = Path(name) / config.out.stem
        export(replace(config, out=folder, force=False), progress)
        made = Pack.of(folder, run.metrics)
        if set(made.arrays) != set(run.arrays.by_name()):
            raise ExportError(f"precision {config.precision}: {_CONSTANTS}; choose another, or export it instead")
        write_whole(config.out, made.to_bytes(), force=config.force)
    return made
