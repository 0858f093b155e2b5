"""A run folder -> a bundle folder: load, trace, bake, prove, write; whole or not at all."""

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.exporters.autotune import time_candidates, winner
from ptexport.exporters.bake import BakedGraph, bake, pipeline
from ptexport.exporters.card import model_card
from ptexport.exporters.parity.compare import (
    always_checked,
    compare_graph,
    fail_on_difference,
    golden_rows,
    texts_of_lengths,
    texts_to_check,
    tolerance_of,
)
from ptexport.exporters.parity.html_page import page
from ptexport.exporters.parity.reference import expected_logits
from ptexport.exporters.parity.report import ParityReport, VariantReport, summarize
from ptexport.exporters.precision.lower import LabelledRows, lower
from ptexport.exporters.targets.targets import TARGETS, check_precision, check_target, choose_opsets
from ptexport.exporters.trace.cached import Trace
from ptexport.exporters.trace.trace import trace, trace_into
from ptexport.runtime.bundle.folder import FILES, MANIFEST, MODEL, PARITY_HTML, PARITY_JSON, README, TOKENIZER
from ptexport.runtime.bundle.manifest import FORMAT, BackboneEntry, Field, GraphEntry, Manifest, Precision, TargetName
from ptexport.runtime.bundle.measured import Candidate, GoldenRow, Parity
from ptexport.runtime.engine.batching import logits_of
from ptexport.runtime.engine.golden import check_golden, golden_texts
from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.runtime.rows import Row, check_label, check_texts, read_rows
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.folders import check_free, new_folder
from ptexport.toolkit.template.template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One export, as asked for.

    Attributes:
        run: the run's folder.
        out: the bundle's folder; its name is what the server calls the model.
        target: what it is for; see exporters/targets/targets.py.
        opset: 18, portable, or 23, with one Attention node a layer; None: the target's default.
        autotune: time the graphs that the target takes on this machine, and take the fastest.
        rows: a file of further rows to check instead of the run's own.
        force: replace a bundle that exists.
        precision: what the graph computes in.
        keep_fp32: of int8, int8-dynamic and int4, weights whose products stay in fp32, by name or pattern; "auto": as
            few as `max_accuracy_drop` takes, of those that cost most.
        max_accuracy_drop: points of accuracy on the rows that a lower precision may lose.
    """

    run: Path
    out: Path
    target: TargetName = "cpu"
    opset: int | None = None
    autotune: bool = False
    rows: Path | None = None
    force: bool = False
    precision: Precision = "fp32"
    keep_fp32: Sequence[str] | Literal["auto"] = ()
    max_accuracy_drop: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what would be ignored.

        Raises:
            ExportError: an option does not go with the precision.
        """
        if self.keep_fp32 and self.precision in ("fp32", "fp16", "bf16"):
            raise ExportError(f"keep-fp32: goes with int8, int8-dynamic or int4, got {self.precision}; leave it out")
        if self.autotune and self.precision != "fp32":
            raise ExportError(f"tune: times graphs in fp32, got {self.precision}; tune first, then give its --opset")


def export(config: ExportConfig, progress: Progress) -> Manifest:
    """Export a run.

    Raises:
        OutputError: the bundle exists, or cannot be written.
        MissingExtraError: ONNX Runtime is not installed.
        DataError: `rows` holds none, or others than the template takes.
        RunError: the run cannot be read, or its backbone is not the one trained on.
        ModelError: its backbone cannot be loaded.
        ExportError: the graph does not answer as the model does, or its target would not take it; no bundle is left
            then.
    """
    opsets = choose_opsets(config.target, config.opset, autotune=config.autotune)
    check_precision(config.target, config.precision)
    check_free(config.out, force=config.force, files=FILES)
    onnxruntime = load_onnxruntime()
    run = Run.read(config.run)
    rows = _rows(run, config.rows)
    progress.stage("loading the backbone")
    backbone = load_backbone_of(run.config, config.run, stage=progress.stage)
    with ExitStack() as stack:
        traces = [_traced(run, backbone, opset, stack, progress) for opset in opsets]
        progress.stage("asking Transformers")
        texts, lengths = texts_to_check(run, rows), texts_of_lengths(run)
        expected = expected_logits(run, backbone, [*texts, *lengths], progress.rows)
        golden = golden_rows(run, backbone)
        del backbone
        gc.collect()  # a session has its own copy of the weights: two at once would be the peak of an export
        folder = stack.enter_context(new_folder(config.out, force=config.force, files=FILES))
        autotuned = _autotune(run, traces, texts, folder, progress) if config.autotune else []
        (traced,) = [t for t in traces if t.info.opset == (winner(autotuned) if autotuned else opsets[0])]
        progress.stage("baking the task in")
        baked = bake(run, traced, folder, pipeline(run, overridable=TARGETS[config.target].shares))
        if config.precision != "fp32":
            progress.stage(f"lowering to {config.precision}")
            baked = _lowered(config, run, baked, folder, rows)
        check_target(config.target, folder)
        compared = parity = None
        if config.precision != "bf16":  # which nothing here runs
            progress.stage("comparing with Transformers")
            compared = compare_graph(run, expected, folder, texts, lengths, precision=config.precision)
            parity = summarize(compared, rows=len(texts), tolerance=tolerance_of(run))
            parity = _passed(config.precision, parity, lambda: _golden_difference(run, golden, folder))
        versions = {**run.versions, **traced.info.versions, "onnxruntime": str(onnxruntime.__version__)}
        manifest = _manifest(config, run, traced, baked, parity, golden, autotuned, versions)
        (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, run.metrics), encoding="utf-8")
        if compared is not None:
            _write_report(folder, manifest, compared, expected[: len(texts)], always=len(always_checked(run)))
    return manifest


def _passed(precision: Precision, parity: Parity, golden_difference: Callable[[], float]) -> Parity:
    """Refuse a graph that does not answer as the model does; of a lower precision, one whose answers are no numbers.

    Golden rows must pass wherever the bundle is opened, so of a lower precision they choose the tolerance too.
    """
    if precision == "fp32":
        fail_on_difference(parity)
        return parity
    most = max(result.max_abs_diff for result in (parity.alone, parity.padded_right, parity.padded_left))
    if not math.isfinite(most + (parity.all_lengths or 0)):
        raise ExportError(f"precision {precision}: a logit is no number; choose another")
    return msgspec.structs.replace(parity, tolerance=2 * max(most, golden_difference()))


def _golden_difference(run: Run, golden: Sequence[GoldenRow], folder: Path) -> float:
    """Run the golden rows; the largest difference of a logit."""
    encoder = TextEncoder.from_json((folder / TOKENIZER).read_text(encoding="utf-8"), fields=_fields(run))
    labels = run.config.labels
    logits = logits_of(Graph.open(folder / MODEL), encoder.encode(golden_texts(golden)), (len(labels),))
    return check_golden(golden, labels, logits, math.inf, str(folder))


def _write_report(
    folder: Path, manifest: Manifest, compared: VariantReport, expected: NDArray[np.float32], *, always: int
) -> None:
    assert manifest.parity is not None, "it was compared"
    report = ParityReport(
        bundle=manifest.name,
        backbone=manifest.backbone.name,
        rows=len(expected),
        always=always,
        tolerance=manifest.parity.tolerance,
        max_abs_logit=float(np.abs(expected).max()),
        variants=[compared],
        versions=manifest.versions,
    )
    (folder / PARITY_JSON).write_bytes(report.to_json())
    (folder / PARITY_HTML).write_bytes(page(report))


def _traced(run: Run, backbone: Backbone, opset: int, stack: ExitStack, progress: Progress) -> Trace:
    pooling, has_prefix_kv = run.config.pooling, run.arrays.has_prefix_kv
    if run.config.trained_backbone is None:
        progress.stage("tracing it (once per backbone)")
        return trace(backbone, pooling, has_prefix_kv=has_prefix_kv, opset=opset)
    progress.stage("tracing it")
    place = stack.enter_context(TemporaryDirectory(prefix="ptexport-"))
    return trace_into(Path(place), backbone, pooling, has_prefix_kv=has_prefix_kv, opset=opset)


def _autotune(
    run: Run, traces: Sequence[Trace], texts: Sequence[Text], folder: Path, progress: Progress
) -> list[Candidate]:
    """Bake every trace beside what is to be, where files of one backbone can share their blocks, and time them."""
    with TemporaryDirectory(dir=folder) as parent:
        places = {traced.info.opset: Path(parent) / str(traced.info.opset) for traced in traces}
        for traced, place in zip(traces, places.values(), strict=True):
            place.mkdir()
            bake(run, traced, place)
        return time_candidates(run, places, texts, progress.stage)


def _rows(run: Run, path: Path | None) -> list[Row]:
    """Find rows to compare on, and refuse those the template does not take before any work is done for them."""
    rows = run.check_rows if path is None else list(read_rows(path))
    for row in rows:
        check_texts(row, _fields(run))
    return rows


def _fields(run: Run) -> Sequence[Field]:
    return Template.parse(run.config.template).fields


def backbone_entry(facts: BackboneFacts) -> BackboneEntry:
    """Say in a manifest what backbone it is."""
    return BackboneEntry(
        fingerprint=facts.fingerprint,
        name=facts.name,
        revision=facts.revision,
        licence=facts.licence,
        model_type=facts.model_type,
    )


def _lowered(config: ExportConfig, run: Run, baked: BakedGraph, folder: Path, rows: Sequence[Row]) -> BakedGraph:
    """Replace a baked graph by one of the precision that was asked for."""
    encoder = TextEncoder.from_json((folder / TOKENIZER).read_text(encoding="utf-8"), fields=_fields(run))
    labels = [label for row in rows for label in _label_numbers(run, row)]
    texts = [row.texts for row in pairs(rows, run.config.labels)]
    labelled = LabelledRows(encodings=encoder.encode(texts), labels=np.array(labels))
    lowered = lower(
        folder,
        config.precision,
        labelled,
        keep_fp32=config.keep_fp32,
        max_drop=config.max_accuracy_drop,
        standard=TARGETS[config.target].standard,
    )
    files, passes = {**baked.files, **lowered.files}, [*baked.passes, *lowered.passes]
    return BakedGraph(files=files, passes=passes, lowered=lowered.entry)


def _label_numbers(run: Run, row: Row) -> list[int]:
    """Number a row's label, or those of each of its choices; -1: it has none."""
    labels = run.config.labels
    if row.label is None or (run.config.open_vocabulary and row.label not in labels):
        return [-1] * (len(row.choices) if row.choices else 1)
    if row.choices is None:
        check_label(row, labels, "mend the row, or leave its label out")
    return [labels.index(str(pair.label)) for pair in pairs([row], labels)]


def _manifest(
    wanted: ExportConfig,
    run: Run,
    traced: Trace,
    baked: BakedGraph,
    parity: Parity | None,
    golden: list[GoldenRow],
    autotuned: list[Candidate],
    versions: dict[str, str],
) -> Manifest:
    config, info = run.config, traced.info
    facts, template = config.facts, Template.parse(config.template)
    words = None if config.open_vocabulary else config.label_words
    return Manifest(
        format=FORMAT,
        name=wanted.out.resolve().name,
        method=config.method + " --tune-backbone" * config.train_backbone,
        files=baked.files,
        backbone=backbone_entry(facts),
        template=config.template,
        fields=template.fields,
        labels=None if config.open_vocabulary else config.labels,
        label_words=None if words is None else dict(zip(config.labels, words, strict=True)),
        max_length=config.max_length - config.n_prefix - config.n_folded,
        abstain_below=None if run.metrics is None else run.metrics.abstain_below,
        graph=GraphEntry(
            target=wanted.target,
            opset=info.opset,
            ir_version=info.ir_version,
            precision=wanted.precision,
            lowered=baked.lowered,
            autotuned=autotuned,
            pooling=config.pooling,
            prompt_tokens=template.n_prompt,
            folded_tokens=config.n_prefix + config.n_folded,
            passes=baked.passes,
        ),
        parity=parity,
        golden=golden,
        installed=None,
        versions=versions,
    )
