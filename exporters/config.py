"""The options of an export, its runs and rows; everything that is checked before PyTorch is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.targets.targets import check_precision, choose_opsets
from ptexport.exporters.targets.tensorrt_rtx import load_tensorrt_rtx
from ptexport.runtime.bundle.folder import FILES
from ptexport.runtime.bundle.manifest import Precision, TargetName
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row, check_texts
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.folders import check_free


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Options of an export.

    Attributes:
        runs: run folders. One becomes a task with the bundle's name; several, on one frozen backbone, become tasks with
            their folders' names.
        out: folder of the bundle; its name is the model name that the server uses.
        target: deployment target; see exporters/targets/targets.py.
        opset: 18, portable, or 23, with one Attention node per layer; None: the target's default.
        autotune: time the graphs that the target accepts on this machine, and use the fastest; for one run.
        rows: file of rows to compare instead of the run's own; for one run.
        columns: columns of `rows`; None: those of the run.
        force: replace a bundle that exists.
        precision: what the graph computes in; several runs are exported in fp32.
        keep_fp32: for int8 and int4, names or patterns of weights whose products stay in fp32; "auto": the products
            that cost most, as few as `max_accuracy_drop` needs.
        max_accuracy_drop: points of accuracy on the rows that a lower precision may lose.
        compute_capabilities: of the GPUs that target tensorrt-rtx builds an engine for, such as "8.9".
    """

    runs: tuple[Path, ...]
    out: Path
    target: TargetName = "cpu"
    opset: int | None = None
    autotune: bool = False
    rows: Path | None = None
    columns: Columns | None = None
    force: bool = False
    precision: Precision = "fp32"
    keep_fp32: Sequence[str] | Literal["auto"] = ()
    max_accuracy_drop: float = 0.5
    compute_capabilities: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [path.resolve().name for path in (self.runs if len(self.runs) > 1 else [self.out])]

    def __post_init__(self) -> None:
        """Check that the options go together.

        Raises:
            ExportError: they do not, or two folders have one name.
        """
        if self.keep_fp32 and self.precision not in ("int8", "int4"):
            raise ExportError(f"keep-fp32: goes with int8 or int4, got {self.precision}; leave it out")
        if self.autotune and self.precision != "fp32":
            raise ExportError(f"tune: times graphs in fp32, got {self.precision}; tune first, then give its --opset")
        if self.compute_capabilities and self.target != "tensorrt-rtx":
            raise ExportError(f"compute capability: goes with target tensorrt-rtx, got {self.target}; leave it out")
        if self.target == "tensorrt-rtx" and not self.compute_capabilities:
            raise ExportError(
                "target tensorrt-rtx: got no compute capability, need those of the cards; name them, such as "
                "--compute-capability 89,120"
            )
        if not self.runs:
            raise ExportError("runs: got none, need at least one run folder; name one")
        for option, given in (
            ("rows", self.rows is not None),
            ("tune", self.autotune),
            (f"precision {self.precision}", self.precision != "fp32"),
        ):
            if given and len(self.runs) > 1:
                raise ExportError(
                    f"{option}: got {len(self.runs)} runs, need one (several are exported in fp32 and compared on "
                    "their own rows); leave it out, or export the runs one by one"
                )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ExportError(f"tasks: got the name {twice[0]} twice, need a name for each; rename a run's folder")


def check_options(config: ExportConfig) -> tuple[int, ...]:
    """Check what can be checked before the runs are read, and return the opsets to export.

    Raises:
        OutputError: the bundle exists.
        MissingExtraError: ONNX Runtime, or for target tensorrt-rtx its package, is not installed.
        ExportError: the target does not support the opset or the precision.
    """
    opsets = choose_opsets(config.target, config.opset, autotune=config.autotune)
    check_precision(config.target, config.precision)
    check_free(config.out, force=config.force, files=FILES)
    load_onnxruntime()  # fails before the work, not after it
    if config.compute_capabilities:
        load_tensorrt_rtx()
    return opsets


def read_inputs(config: ExportConfig) -> tuple[JointTasks, list[list[Row]]]:
    """Read the runs, and the rows to compare of each.

    Raises:
        RunError: a run cannot be read.
        ExportError: the runs do not fit together.
        DataError: `rows` holds no rows, or rows with other texts than the template takes.
    """
    joint = read_runs(config)
    return joint, [_rows(run, config) for run in joint.runs.values()]


def read_runs(config: ExportConfig) -> JointTasks:
    """Read the runs of a bundle: one with the bundle's name, several with their folders' names.

    Raises:
        RunError: a run cannot be read.
        ExportError: the runs do not fit together.
    """
    return JointTasks({name: Run.read(path) for name, path in zip(config.names, config.runs, strict=True)})


def _rows(run: Run, config: ExportConfig) -> list[Row]:
    """Choose the rows to compare; raises before any work if the template takes other texts."""
    columns = config.columns or run.config.columns
    rows = run.check_rows if config.rows is None else list(read_rows(config.rows, columns))
    for row in rows:
        check_texts(row, run.config.fields)
    return rows
