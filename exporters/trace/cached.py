"""A traced backbone on disk: its place in the cache and its description; without torch.

model.onnx       the graph, with all task arrays as inputs
model.onnx.data  the frozen weights, byte for byte as in every bundle of this backbone
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
_FORMAT = 7  # of these files, and of the traced module

TraceKind = Literal["task", "mixed", "blocks"]
"""A graph of one task; of several tasks, one per row; of several tasks that may share a row (`blocks` of
`MultitaskClassifier`)."""


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Description of a trace.

    Attributes:
        fingerprint: hash of the backbone's weights.
        config_sha256: hash of its configuration.
        pooling: hidden state that becomes logits.
        has_prefix_kv: whether the graph takes past key/values.
        kind: whether the graph serves one task or several, and in which rows.
        opset: ONNX operator set.
        ir_version: ONNX file version.
        inputs: inputs that a tokenizer fills, in order; the others are task arrays.
        weights: the weights file, so that it is hashed once.
        versions: packages that traced it.
    """

    fingerprint: str
    config_sha256: str
    pooling: Pooling
    has_prefix_kv: bool
    kind: TraceKind
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
            ExportError: the folder is not a trace, or a file is missing or truncated.
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
    """Name the cache's folder of a trace, by all that may change the graph, versions of torch and Transformers too."""
    toolchain = "-".join(version(name) for name in ("ptexport", "torch", "transformers"))
    graph = pooling + "-prefix" * has_prefix_kv + ("" if kind == "task" else f"-{kind}")
    return f"{facts.fingerprint[:16]}-{facts.config_sha256[:8]}-{graph}-opset{opset}-{_FORMAT}-{toolchain}"
