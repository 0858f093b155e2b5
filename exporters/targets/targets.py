"""What bundles are made for: the opset, operators and size that each target takes; knows nothing of tasks or tracing.

In fp32 every target gets the traced graph with the same edits, of operators that ONNX defines; int8 and int4 use ONNX
Runtime's own where the target takes them. What fits the machine it runs on ONNX Runtime fuses when it opens the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ptexport.exporters.targets.tensorrt import not_for_tensorrt
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS
from ptexport.runtime.bundle.manifest import Precision, TargetName
from ptexport.runtime.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one target takes.

    Attributes:
        name: as `--target` takes it.
        opsets: those it takes, its default first.
        precisions: those it takes, its default first.
        trainable: whether times on this machine's CPU say which graph is fastest there.
        objections: finds what it would not take of a graph; None: it takes what ONNX Runtime does.
        standard: whether it takes ONNX's own operators alone.
        shares: whether bundles of one backbone may share a session: a task's arrays are default values then, else
            constants.
        max_file_bytes: largest file it takes; None: any.
    """

    name: TargetName
    opsets: tuple[int, ...]
    precisions: tuple[Precision, ...]
    trainable: bool = False
    objections: Callable[[ir.Model], list[str]] | None = None
    standard: bool = False
    shares: bool = False
    max_file_bytes: int | None = None


TARGETS: dict[TargetName, Target] = {
    target.name: target
    for target in (
        # Opset 23 is 0 to 4 % faster here (docs/export.md) and needs ONNX Runtime 1.23: no reason to leave 18.
        # bf16: ONNX Runtime's CPU provider has no products in it.
        Target(
            name="cpu",
            opsets=(18, 23),
            precisions=("fp32", "int8", "int4", "fp16"),
            trainable=True,
            shares=True,
        ),
        # ONNX Runtime 1.24 and older run opset 23's Attention on the CPU silently (microsoft/onnxruntime#28025).
        Target(name="cuda", opsets=(18, 23), precisions=("fp32", "fp16", "bf16", "int4"), shares=True),
        # JetPack 6 has TensorRT 10.3; Attention came with 10.14.
        Target(name="tensorrt", opsets=(18,), precisions=("fp32", "fp16", "bf16", "int8"), objections=not_for_tensorrt),
        # Chrome's longest ArrayBuffer; see onnxruntime.ai/docs/tutorials/web/large-models.html.
        Target(name="web", opsets=(18, 23), precisions=("fp32", "int8", "int4", "fp16"), max_file_bytes=0x7FE00000),
    )
}


def choose_opsets(target: TargetName, opset: int | None, *, autotune: bool) -> tuple[int, ...]:
    """Choose the opsets to make graphs of: one, or all that are timed against each other.

    Raises:
        ExportError: the target does not take the opset, or cannot be tuned for here.
    """
    takes = TARGETS[target]
    if opset not in (None, *takes.opsets):
        need = " or ".join(map(str, takes.opsets))
        raise ExportError(f"target {target}: got opset {opset}, need {need}; leave --opset out, or choose another")
    if not autotune:
        return takes.opsets[:1] if opset is None else (opset,)
    if not takes.trainable:
        raise ExportError(f"target {target}: --tune times graphs on this machine's CPU, need target cpu; leave it out")
    if opset is not None:
        raise ExportError(f"opset {opset}: --tune chooses the opset; leave one of the two out")
    return takes.opsets


def check_precision(target: TargetName, precision: Precision) -> None:
    """Refuse a precision that a target does not take.

    Raises:
        ExportError: it does not.
    """
    takes = TARGETS[target].precisions
    if precision not in takes:
        raise ExportError(f"target {target}: got precision {precision}, need one of {', '.join(takes)}; choose one")


def check_target(target: TargetName, folder: Path) -> None:
    """Refuse a graph that its target would not take.

    Args:
        target: what it is for.
        folder: holds the graph and its weights.

    Raises:
        ExportError: it has operators that the target does not take, or a file too large for it.
    """
    takes = TARGETS[target]
    why = [] if takes.objections is None else takes.objections(ir.load(folder / MODEL))
    if why:
        raise ExportError(
            f"target {target}: would not take {'; '.join(why)}; choose another target, or report the model"
        )
    for name in (MODEL, WEIGHTS):
        size = (folder / name).stat().st_size
        if takes.max_file_bytes is not None and size > takes.max_file_bytes:
            got = f"{name} has {size} bytes, need at most {takes.max_file_bytes}"
            raise ExportError(f"target {target}: {got}; use a smaller backbone or precision")
