"""The manifest of a bundle: its files, backbone, graph and tasks.

The digest is the sha256 of the canonical JSON (keys sorted, no spaces, UTF-8 unescaped) without the key `digest`.
"""

import hashlib
import json
from typing import Annotated, Any, Final, Literal

import msgspec

from ptexport.runtime.bundle.measured import Candidate, Comparison, Golden, Parity, PrecisionEntry
from ptexport.runtime.errors import BundleError
from ptexport.runtime.rows.columns import Columns

FORMAT: Final = 2
MAX_MANIFEST_BYTES = 1 << 20

ALL = "all"
"""Stands for every task of a bundle, so no task of several has this name."""

Pooling = Literal["last", "mask", "first", "mean", "pooled", "pooled-mean"]
"""The hidden state that becomes logits: of the last real token, of the mask slot, of the first token, the mean over all
tokens, or of the first token after the backbone's own pooler."""

TargetName = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "web"]
"""Deployment target of a graph; see docs/export.md."""

TextField = Literal["text", "text_b", "choice"]
"""A text of a row; "choice" is each of its candidates in turn."""

Fields = Annotated[list[TextField], msgspec.Meta(min_length=1, max_length=2)]
Labels = Annotated[list[str], msgspec.Meta(min_length=1)]
Length = Annotated[int, msgspec.Meta(ge=1)]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""Precision of a graph. int8 and int4 apply to products with weights, and int4 to the weights alone."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    sha256: str
    size_bytes: int


class BackboneEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The frozen language model.

    Attributes:
        fingerprint: sha256 over its weights, independent of file layout.
        name: alias, hub name or folder name that it was loaded by; a trained backbone keeps its name.
        revision: commit on the hub, if known.
        licence: licence in its model card, if known.
        model_type: Transformers' name of the architecture.
    """

    fingerprint: str
    name: str
    revision: str | None
    licence: str | None
    model_type: str


class PassEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One edit of the traced graph.

    Attributes:
        name: name of the pass.
        did: one sentence about its changes.
    """

    name: str
    did: str


class GraphEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the graph was made.

    Attributes:
        target: deployment target it was exported for.
        opset: ONNX operator set.
        ir_version: ONNX file version.
        precision: precision it computes in.
        lowered: cost of a precision lower than fp32; None in fp32.
        autotuned: graphs that `--tune` timed on the exporting machine, the target's default first; empty without it.
        pooling: hidden state that becomes logits.
        passes: edits of the traced graph, in order.
    """

    target: TargetName
    opset: int
    ir_version: int
    precision: Precision
    lowered: PrecisionEntry | None
    autotuned: list[Candidate]
    pooling: Pooling
    passes: list[PassEntry]


class ShapeRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes that an engine takes for one input.

    Attributes:
        least: smallest size of each dimension.
        usual: sizes that the engine is optimized for.
        most: largest size of each dimension.
    """

    least: list[int]
    usual: list[int]
    most: list[int]


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TensorRT RTX engine, which computes what `model.onnx` computes; the arrays of the tasks are inputs of it.

    Attributes:
        compute_capabilities: of the GPUs that it was built for, such as "8.9".
        tensorrt_rtx: version of TensorRT RTX that built it.
        layers: layers of the network that it was built from.
        profile: sizes by name of the input.
    """

    compute_capabilities: Annotated[list[str], msgspec.Meta(min_length=1)]
    tensorrt_rtx: str
    layers: int
    profile: dict[str, ShapeRange]


class Installation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bundle was made from a pack and another bundle of the same backbone.

    Attributes:
        pack: digest of the pack.
        backbone: digest of the other bundle's manifest.
        golden_max_abs_diff: largest absolute difference from the golden rows there; None: the graph was not run.
        ptexport: version that installed it.
    """

    pack: str
    backbone: str
    golden_max_abs_diff: float | None
    ptexport: str


class TaskEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task of a bundle.

    Attributes:
        name: name of the task; the bundle's, if it is the only one.
        method: training method, as `ptexport train --method` takes it.
        template: template as the user wrote it.
        fields: texts of a row, in order.
        columns: columns of a file that become the parts of a row.
        seed: seed of the training's split, by which the test rows of a data set are found again.
        labels: label names in the order of the logits; None for an open vocabulary, whose labels are in `config.json`.
        label_words: words per label; None for a linear head or an open vocabulary.
        max_length: longest `input_ids` of a row; longer texts are truncated.
        abstain_below: probability below which the engine predicts no label; None: it always predicts one.
        prompt_tokens: virtual tokens in the template, folded ones and trained past key/values included.
        folded_tokens: leading tokens that are constant past key/values and not in `input_ids`.
        parity: comparison with Transformers, among rows of the other tasks; None: not run, since ONNX Runtime's CPU
            provider cannot run the graph.
        fan_out: the same comparison where one row carries all tasks; None if `Manifest.fan_out` is false.
        golden: rows that are run wherever the bundle is opened.
    """

    name: str
    method: str
    template: str
    fields: Fields
    columns: Columns
    seed: int
    labels: Labels | None
    label_words: dict[str, list[str]] | None
    max_length: Length
    abstain_below: float | None
    prompt_tokens: int
    folded_tokens: int
    parity: Parity | None
    fan_out: Comparison | None
    golden: Golden


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle's manifest, format 2.

    Attributes:
        format: version of this layout.
        name: name of the bundle.
        files: every file the runtime reads, by plain file name.
        backbone: the frozen language model.
        graph: how the graph was made.
        engine: the engine beside the graph; None: there is none.
        fan_out: whether one forward pass over a text can serve all tasks.
        tasks: at least one, in the order of the graph's output.
        installed: the pack it was installed from; None: it was exported.
        versions: packages that made it.
        digest: sha256 of the canonical JSON of all other keys.
    """

    format: Literal[2]
    name: str
    files: dict[str, FileEntry]
    backbone: BackboneEntry
    graph: GraphEntry
    engine: EngineEntry | None = None
    fan_out: bool
    tasks: Annotated[list[TaskEntry], msgspec.Meta(min_length=1)]
    installed: Installation | None
    versions: dict[str, str]
    digest: str = ""

    @property
    def task(self) -> TaskEntry:
        """The only task.

        Raises:
            BundleError: the bundle has several.
        """
        if len(self.tasks) > 1:
            names = ", ".join(task.name for task in self.tasks)
            raise BundleError(f"bundle {self.name}: got the tasks {names}, need a bundle of one task; name a task")
        return self.tasks[0]

    def renamed(self, name: str) -> "Manifest":
        """Return a copy with another name; the only task of a bundle has the same name."""
        tasks = self.tasks if len(self.tasks) > 1 else [msgspec.structs.replace(self.tasks[0], name=name)]
        return msgspec.structs.replace(self, name=name, tasks=tasks)

    def to_json(self) -> bytes:
        """Encode for `manifest.json`, with the digest filled in."""
        record = msgspec.to_builtins(self)
        record["digest"] = digest_of(record)
        return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def digest_of(record: dict[str, Any]) -> str:
    """Compute a manifest's digest: the sha256 of its canonical JSON without the key `digest`."""
    content = {key: value for key, value in record.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
