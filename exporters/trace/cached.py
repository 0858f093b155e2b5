"""A traced backbone on disk: where it is kept and what it is of; without torch.

model.onnx       the graph, with everything a task brings as inputs
model.onnx.data  the frozen weights, byte for byte what every bundle of this backbone holds
trace.json       TraceInfo
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from ptexport.runtime.bundle.folder import MODEL, WEIGHTS
from ptexport.runtime.bundle.manifest import FileEntry, Pooling
from ptexport.runtime.errors import ExportError, reason
from ptexport.toolkit.models.facts import BackboneFacts

TRACE_INFO = "trace.json"
_FORMAT = 6  # of what a trace keeps, and of what is traced

TraceKind = Literal["task", "mixed", "blocks"]
"""A graph of one task; of several, one per row; of several that may share a row. See multitask_classifier.py."""


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trace is of.

    Attributes:
        fingerprint: of the backbone's weights.
        config_sha256: of its configuration.
        pooling: position whose state becomes logits.
        has_prefix_kv: whether it takes keys and values of what stands before a row.
        kind: how many tasks it takes, and where.
        opset: ONNX operator set.
        ir_version: ONNX file version.
        inputs: the graph's inputs that a row brings, in order; the others are a task's.
        weights: the weights file, so that it is hashed once.
        versions: of what traced it.
    """

    fingerprint: str
    config_sha256: str
    pooling: Pooling
    has_prefix_kv: bool
    kind: TraceKind = "task"
    opset: int
    ir_version: int
    inputs: list[str]
    weights: FileEntry
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A traced backbone on disk."""

    path: Path
    info: TraceInfo

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read a trace's description.

        Raises:
            ExportError: it is not one, or a file of it is missing or cut short.
        """
        try:
            info = msgspec.json.decode((path / TRACE_INFO).read_bytes(), type=TraceInfo)
            whole = (path / MODEL).is_file() and (path / WEIGHTS).stat().st_size == info.weights.size_bytes
        except (OSError, msgspec.DecodeError) as e:
            raise ExportError(f"{path}: not a trace ({reason(e)}); remove the folder and export again") from e
        if not whole:
            raise ExportError(f"{path}: its files are missing or cut short; remove the folder and export again")
        return cls(path=path, info=info)


def trace_key(
    facts: BackboneFacts, pooling: Pooling, *, has_prefix_kv: bool, opset: int, kind: TraceKind = "task"
) -> str:
    """Name the cache's folder for a trace; another torch or Transformers may write another graph."""
    toolchain = "-".join(version(name) for name in ("ptexport", "torch", "transformers"))
    graph = pooling + "-prefix" * has_prefix_kv + ("" if kind == "task" else f"-{kind}")
    return f"{facts.fingerprint[:16]}-{facts.config_sha256[:8]}-{graph}-opset{opset}-{_FORMAT}-{toolchain}"
