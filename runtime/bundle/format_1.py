"""manifest.json of format 1 -> Manifest.

Format 1 had two layouts: one task, with its entries at the top, and several tasks. It is read, and never written.
"""

from typing import Any, Literal

import msgspec

from ptexport.runtime.bundle.manifest import (
    BackboneEntry,
    Fields,
    FileEntry,
    GraphEntry,
    Installation,
    Labels,
    Length,
    Manifest,
    PassEntry,
    Pooling,
    Precision,
    TargetName,
    TaskEntry,
)
from ptexport.runtime.bundle.measured import Candidate, Comparison, Golden, Parity, PrecisionEntry
from ptexport.runtime.errors import BundleError
from ptexport.runtime.rows.columns import Columns


class _Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    target: TargetName
    opset: int
    ir_version: int
    precision: Precision
    lowered: PrecisionEntry | None
    tuned: list[Candidate]
    read: Pooling
    prompt_tokens: int
    folded_tokens: int
    passes: list[PassEntry]


class _OneTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    name: str
    method: str
    files: dict[str, FileEntry]
    backbone: BackboneEntry
    template: str
    fields: Fields
    labels: Labels | None
    label_words: dict[str, list[str]] | None
    max_length: Length
    abstain_below: float | None
    graph: _Graph
    parity: Parity | None
    golden: Golden
    installed: Installation | None
    versions: dict[str, str]
    digest: str


class _Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    method: str
    template: str
    fields: Fields
    labels: Labels | None
    label_words: dict[str, list[str]] | None
    max_length: Length
    abstain_below: float | None
    prompt_tokens: int
    folded_tokens: int
    parity: Parity | None
    fan_out: Comparison | None
    golden: Golden


class _SeveralTasks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    name: str
    files: dict[str, FileEntry]
    backbone: BackboneEntry
    target: TargetName
    opset: int
    ir_version: int
    precision: Literal["fp32"]
    read: Pooling
    fan_out: bool
    tasks: list[_Task]
    versions: dict[str, str]
    digest: str


def upgrade(record: dict[str, Any], where: str) -> Manifest:
    """Convert a decoded manifest of format 1; the digest stays the one of the file.

    Raises:
        msgspec.ValidationError: a field is unknown, missing or mistyped.
        BundleError: its precision is no longer supported.
    """
    if "tasks" in record:
        return _from_several(msgspec.convert(record, _SeveralTasks), where)
    graph = record.get("graph")
    if isinstance(graph, dict) and graph.get("precision") == "int8-dynamic":
        raise BundleError(
            f"{where}: got precision int8-dynamic, whose predictions depend on the other rows of a batch and which is "
            "no longer supported; export again with --precision int8"
        )
    return _from_one(msgspec.convert(record, _OneTask))


def _from_one(old: _OneTask) -> Manifest:
    task = _Task(
        name=old.name,
        method=old.method,
        template=old.template,
        fields=old.fields,
        labels=old.labels,
        label_words=old.label_words,
        max_length=old.max_length,
        abstain_below=old.abstain_below,
        prompt_tokens=old.graph.prompt_tokens,
        folded_tokens=old.graph.folded_tokens,
        parity=old.parity,
        fan_out=None,
        golden=old.golden,
    )
    graph = GraphEntry(
        target=old.graph.target,
        opset=old.graph.opset,
        ir_version=old.graph.ir_version,
        precision=old.graph.precision,
        lowered=old.graph.lowered,
        autotuned=old.graph.tuned,
        pooling=old.graph.read,
        passes=old.graph.passes,
    )
    return Manifest(
        format=2,
        name=old.name,
        files=old.files,
        backbone=old.backbone,
        graph=graph,
        fan_out=False,
        tasks=[_with_data(task)],
        installed=old.installed,
        versions=old.versions,
        digest=old.digest,
    )


def _from_several(old: _SeveralTasks, where: str) -> Manifest:
    if len(old.tasks) < 2:
        raise BundleError(f"{where}: lists {len(old.tasks)} tasks, need at least 2 in this layout; export again")
    graph = GraphEntry(
        target=old.target,
        opset=old.opset,
        ir_version=old.ir_version,
        precision=old.precision,
        lowered=None,
        autotuned=[],
        pooling=old.read,
        passes=[],
    )
    return Manifest(
        format=2,
        name=old.name,
        files=old.files,
        backbone=old.backbone,
        graph=graph,
        fan_out=old.fan_out,
        tasks=[_with_data(task) for task in old.tasks],
        installed=None,
        versions=old.versions,
        digest=old.digest,
    )


def _with_data(task: _Task) -> TaskEntry:
    """Add what format 1 does not say of the training rows: the default columns and seed."""
    return TaskEntry(**msgspec.structs.asdict(task), columns=Columns(), seed=0)
