"""What a bundle says of itself: manifest.json <-> Manifest; knows no file but that one.

The digest is the sha256 of the canonical JSON (keys sorted, no spaces, UTF-8 unescaped) without the key `digest`.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from ptexport.runtime.errors import BundleError, reason
from ptexport.runtime.measured import Candidate, Comparison, Golden, Parity, PrecisionEntry

FORMAT: Final = 1
MAX_MANIFEST_BYTES = 1 << 20

Read = Literal["last", "mask", "first", "mean", "pooled"]
"""The state that becomes logits: the last real token's, the mask slot's, the first token's, the mean of all, or the
first token's after the backbone's own pooler."""

TargetName = Literal["cpu", "cuda", "tensorrt", "web"]
"""What a graph was made for; see docs/export.md."""

Field = Literal["text", "text_b", "choice"]
"""A text that a row brings; "choice" is each of its candidates in turn."""

Fields = Annotated[list[Field], msgspec.Meta(min_length=1, max_length=2)]
Labels = Annotated[list[str], msgspec.Meta(min_length=1)]
Length = Annotated[int, msgspec.Meta(ge=1)]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4"]
"""What a graph computes in. int8 and int4 say it of products with weights, and int4 of the weights alone."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    sha256: str
    size_bytes: int


class BackboneEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The frozen language model: where it came from and what it is.

    Attributes:
        fingerprint: sha256 over its weights, whatever files they were in.
        name: alias, hub name or folder name it was loaded by; a trained one keeps its name.
        revision: commit on the hub, where known.
        licence: as its model card says, where known.
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
        name: of the pass.
        did: what it changed, one sentence.
    """

    name: str
    did: str


class GraphEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the graph was made.

    Attributes:
        target: what it was made for.
        opset: ONNX operator set.
        ir_version: ONNX file version.
        precision: what it computes in.
        lowered: what that came to; None: it is fp32.
        tuned: graphs that were timed on the machine that made it, the target's default first; empty: none were.
        read: which state becomes logits.
        prompt_tokens: virtual tokens the template holds, folded ones and trained keys and values included.
        folded_tokens: leading tokens that are constant keys and values and not in `input_ids`.
        passes: the edits of the traced graph, in order.
    """

    target: TargetName
    opset: int
    ir_version: int
    precision: Precision
    lowered: PrecisionEntry | None
    tuned: list[Candidate]
    read: Read
    prompt_tokens: int
    folded_tokens: int
    passes: list[PassEntry]


class Installation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bundle was made of a pack and a bundle of the same backbone.

    Attributes:
        pack: digest of the pack.
        backbone: digest of the other bundle's manifest.
        golden_max_abs_diff: largest difference from the golden rows there; None: the graph was not run.
        ptexport: version that installed it.
    """

    pack: str
    backbone: str
    golden_max_abs_diff: float | None
    ptexport: str


class _Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A manifest.json, whose last field is `digest`."""

    def to_json(self) -> bytes:
        """Encode for `manifest.json`, with the digest filled in."""
        record = msgspec.to_builtins(self)
        record["digest"] = _digest(record)
        return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Decode `manifest.json` and check it against its own digest.

        Raises:
            BundleError: too large, not JSON, another format, an unknown, missing or mistyped field, a wrong digest.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{where}: got {len(data)} bytes, need at most {MAX_MANIFEST_BYTES}; export again")
        try:
            record = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
        except (ValueError, RecursionError) as e:
            raise BundleError(f"{where}: not JSON ({e}); copy the bundle again") from e
        version = record.get("format") if isinstance(record, dict) else None
        if version != FORMAT:
            got = repr(version)[:40] if isinstance(version, int | float | str | None) else type(version).__name__
            raise BundleError(f"{where}: got format {got}, need {FORMAT}; export again with this version of ptexport")
        try:
            digest = _digest(record)
            manifest = msgspec.convert(record, cls)
        except msgspec.ValidationError as e:
            raise BundleError(
                f"{where}: {reason(e)[:200]}; copy the bundle again, or export it again with this version"
            ) from e
        except UnicodeEncodeError as e:
            raise BundleError(f"{where}: holds half of a surrogate pair, need Unicode; export again") from e
        if record.get("digest") != digest:
            raise BundleError(f"{where}: its digest does not match its content; it was changed, copy the bundle again")
        return manifest


class Manifest(_Signed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle's manifest, format 1.

    Attributes:
        format: version of this layout.
        name: what the server calls the model.
        method: how it was trained, as `ptexport train --method` takes it.
        files: every file the runtime reads, by plain file name.
        backbone: the frozen language model.
        template: as the user wrote it.
        fields: the texts a row brings, in order.
        labels: names, in the order of the logits; None: answers are open, and the names are the words of the
            vocabulary that `config.json` lists.
        label_words: words per label; None for a linear head, or where answers are open.
        max_length: most ids a row has in `input_ids`; longer texts are truncated.
        abstain_below: probability below which the engine gives no label; None: it always gives one.
        graph: how the graph was made.
        parity: how it compares with the model, measured where it was exported or packed; None: it was not run, since
            ONNX Runtime's CPU cannot.
        golden: a few rows to run wherever it is opened.
        installed: how it was made of a pack; None: it was exported.
        versions: of everything that made it.
        digest: sha256 of the canonical JSON of all other keys.
    """

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
    graph: GraphEntry
    parity: Parity | None
    golden: Golden
    installed: Installation | None
    versions: dict[str, str]
    digest: str = ""


class TaskEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tasks of a bundle, as `Manifest` says them of a bundle of one.

    Attributes:
        name: what it is called.
        method: how it was trained.
        template: as the user wrote it.
        fields: the texts a row brings, in order.
        labels: names, in the order of its logits.
        label_words: words per label; None for a linear head.
        max_length: most ids a row of this task alone has.
        abstain_below: probability below which the engine gives no label.
        prompt_tokens: virtual tokens its template holds.
        folded_tokens: leading tokens of its that are constant keys and values.
        parity: how its rows, among rows of the other tasks, compare with the model.
        fan_out: the same where all tasks were asked of one row; None: this bundle does not.
        golden: a few rows to run wherever it is opened.
    """

    name: str
    method: str
    template: str
    fields: Fields
    labels: Labels
    label_words: dict[str, list[str]] | None
    max_length: Length
    abstain_below: float | None
    prompt_tokens: int
    folded_tokens: int
    parity: Parity
    fan_out: Comparison | None
    golden: Golden


class TasksManifest(_Signed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest of a bundle of many tasks, format 1.

    Attributes:
        format: version of this layout.
        name: of the bundle.
        files: every file the runtime reads, by plain file name.
        backbone: the frozen language model of all.
        target: what it was made for.
        opset: ONNX operator set.
        ir_version: ONNX file version.
        precision: of the weights.
        read: which state becomes logits.
        fan_out: whether one reading of a text can answer all tasks.
        tasks: in the order of the graph's output, `logits [batch, tasks, most labels]`.
        versions: of everything that made it.
        digest: sha256 of the canonical JSON of all other keys.
    """

    format: Literal[1]
    name: str
    files: dict[str, FileEntry]
    backbone: BackboneEntry
    target: TargetName
    opset: int
    ir_version: int
    precision: Literal["fp32"]
    read: Read
    fan_out: bool
    tasks: Annotated[list[TaskEntry], msgspec.Meta(min_length=1)]
    versions: dict[str, str]
    digest: str = ""


def _digest(record: dict[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value
