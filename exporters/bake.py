"""One or several runs + a traced graph -> the files of a bundle; without torch, in about a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.passes.bind import BindInputsPass
from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.device_sizes import DeviceSizesPass
from ptexport.exporters.passes.edit import Edit, edit
from ptexport.exporters.passes.ort_rewrites import rewrites
from ptexport.exporters.passes.read_position import ReadPositionPass
from ptexport.exporters.trace.cached import Trace
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import FileEntry, PassEntry
from ptexport.runtime.bundle.measured import PrecisionEntry
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.store.folders import clone


def pipeline(joint: JointTasks, *, overridable: bool = True) -> list[Edit]:
    """List the edits of a traced graph, in order; see `BindInputsPass` for `overridable`."""
    one_position = joint.kind == "task" and joint.first.config.pooling not in ("mean", "pooled-mean")
    return [
        *([ReadPositionPass()] if one_position else []),
        *rewrites(),
        DeviceSizesPass(),
        BindInputsPass(joint.arrays(), overridable=overridable),
        DeadCodePass(),
        ForgetIntermediateShapesPass(),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BakedGraph:
    """The files of a bundle, and how its graph was made.

    Attributes:
        files: for the manifest.
        passes: edits of the traced graph.
        lowered: cost of a precision lower than fp32; None in fp32.
    """

    files: dict[str, FileEntry]
    passes: list[PassEntry]
    lowered: PrecisionEntry | None = None


def bake(joint: JointTasks, trace: Trace, folder: Path, passes: Sequence[Edit] | None = None) -> BakedGraph:
    """Write the files that the runtime and Transformers read: graph, weights, tokenizer and configuration.

    Args:
        joint: the tasks.
        trace: graph of their backbone.
        folder: an empty folder.
        passes: edits instead of `pipeline`'s.

    Raises:
        ExportError: the trace is of another backbone, pooling or number of tasks.
    """
    info, facts = trace.info, joint.first.config.facts
    got = (info.fingerprint, info.config_sha256, info.pooling, info.has_prefix_kv, info.kind)
    need = (facts.fingerprint, facts.config_sha256, joint.first.config.pooling, joint.has_prefix_kv, joint.kind)
    if got != need:
        raise ExportError(f"{trace.path}: traces another backbone or pooling than the run's; export again")
    model = ir.load(trace.path / MODEL)
    done = edit(model, *(pipeline(joint) if passes is None else passes))
    ir.save(model, folder / MODEL)  # external tensors keep pointing to the weights file's name and offsets
    clone(trace.path / WEIGHTS, folder / WEIGHTS)
    texts = joint.texts(info.inputs)
    for name, content in texts.items():
        (folder / name).write_text(content, encoding="utf-8")
    written = {name: file_entry(folder / name) for name in (MODEL, *texts)}
    return BakedGraph(files={**written, WEIGHTS: info.weights}, passes=done)
