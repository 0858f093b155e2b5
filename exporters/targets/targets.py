"""The opset, operators, precisions and file size that each deployment target accepts; knows nothing of tasks.

In fp32 all targets get the same edits of the traced graph, with standard ONNX operators. int8 and int4 use ONNX
Runtime's own operators if the target accepts them. ONNX Runtime fuses operators for its machine when it loads a graph.
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
    """What one target accepts.

    Attributes:
        name: value of `--target`.
        opsets: accepted opsets, the default first.
        precisions: accepted precisions, the default first.
        can_autotune: whether latencies on this machine's CPU show which graph is fastest on the target.
        objections: finds the parts of a graph that the target rejects; None: it accepts what ONNX Runtime accepts.
        standard: whether it accepts only operators that ONNX defines.
        shares: whether bundles of one backbone may share a session: task arrays are overridable initializers then, else
            constants.
        max_file_bytes: size of the largest accepted file; None: any.
    """

    name: TargetName
    opsets: tuple[int, ...]
    precisions: tuple[Precision, ...]
    can_autotune: bool = False
    objections: Callable[[ir.Model], list[str]] | None = None
    standard: bool = False
    shares: bool = False
    max_file_bytes: int | None = None


TARGETS: dict[TargetName, Target] = {
    target.name: target
    for target in (
        # Opset 23 is 0 to 4 % faster here (docs/export.md) and needs ONNX Runtime 1.23: 18 stays the default.
        # Not bf16: ONNX Runtime's CPU provider cannot multiply in it.
        Target(
            name="cpu",
            opsets=(18, 23),
            precisions=("fp32", "int8", "int4", "fp16"),
            can_autotune=True,
            shares=True,
        ),
        # ONNX Runtime 1.24 and older run opset 23's Attention on the CPU silently (microsoft/onnxruntime#28025).
        Target(name="cuda", opsets=(18, 23), precisions=("fp32", "fp16", "bf16", "int4"), shares=True),
        # JetPack 6 has TensorRT 10.3; Attention came with 10.14.
        Target(name="tensorrt", opsets=(18,), precisions=("fp32", "fp16", "bf16", "int8"), objections=not_for_tensorrt),
        # Its parser and builder are asked; task arrays are inputs of the engine. It parses Attention (opset 23), and
        # has no kernel for it.
        Target(
            name="tensorrt-rtx",
            opsets=(18,),
            precisions=("fp32", "fp16", "bf16", "int8"),
            standard=True,
            shares=True,
        ),
        # OpenVINO's plugin 1.8.1 takes no overridable initializers, and no Attention of opset 23.
        Target(name="openvino", opsets=(18,), precisions=("fp32", "fp16", "int8")),
        # Chrome's longest ArrayBuffer; see onnxruntime.ai/docs/tutorials/web/large-models.html.
        Target(name="web", opsets=(18, 23), precisions=("fp32", "int8", "int4", "fp16"), max_file_bytes=0x7FE00000),
    )
}


def choose_opsets(target: TargetName, opset: int | None, *, autotune: bool) -> tuple[int, ...]:
    """Choose the opsets of the graphs to make: one, or with `autotune` all that the target accepts.

    Raises:
        ExportError: the target does not accept the opset, or latencies here do not apply to it.
    """
    takes = TARGETS[target]
    if opset not in (None, *takes.opsets):
        need = " or ".join(map(str, takes.opsets))
        raise ExportError(f"target {target}: got opset {opset}, need {need}; leave --opset out, or choose another")
    if not autotune:
        return takes.opsets[:1] if opset is None else (opset,)
    if not takes.can_autotune:
        raise ExportError(f"target {target}: --tune times graphs on this machine's CPU, need target cpu; leave it out")
    if opset is not None:
        raise ExportError(f"opset {opset}: --tune chooses the opset; leave one of the two out")
    return takes.opsets


def check_precision(target: TargetName, precision: Precision) -> None:
    """Refuse a precision that a target does not accept.

    Raises:
        ExportError: the target does not accept it.
    """
    takes = TARGETS[target].precisions
    if precision not in takes:
        raise ExportError(f"target {target}: got precision {precision}, need one of {', '.join(takes)}; choose one")


def check_target(target: TargetName, folder: Path) -> None:
    """Refuse a graph that its target would reject.

    Args:
        target: deployment target.
        folder: holds the graph and its weights.

    Raises:
        ExportError: the target rejects an operator, or a file is too large for it.
    """
    takes = TARGETS[target]
    why = [] if takes.objections is None else takes.objections(ir.load(folder / MODEL))
    if why:
        raise ExportError(f"target {target}: rejects {'; '.join(why)}; choose another target, or report the model")
    for name in (MODEL, WEIGHTS):
        size = (folder / name).stat().st_size
        if takes.max_file_bytes is not None and size > takes.max_file_bytes:
            got = f"{name} has {size} bytes, need at most {takes.max_file_bytes}"
            raise ExportError(f"target {target}: {got}; use a smaller backbone or precision")
