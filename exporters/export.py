"""Run folders -> a bundle folder: load, trace, bake, lower, compare, write; atomic."""

import gc
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from ptexport.exporters.autotune import time_candidates, winner
from ptexport.exporters.bake import BakedGraph, bake, pipeline
from ptexport.exporters.card import model_card
from ptexport.exporters.config import ExportConfig, check_options, read_inputs
from ptexport.exporters.engine import add_engine
from ptexport.exporters.manifest_entries import backbone_entry, task_entry
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import compare_graph, fail_on_difference
from ptexport.exporters.parity.reference import Reference
from ptexport.exporters.parity.report import ParityReport, TaskReport, comparison_of, summarize
from ptexport.exporters.precision.lower import LabelledRows, lower
from ptexport.exporters.targets.targets import TARGETS, check_target
from ptexport.exporters.trace.cached import Trace
from ptexport.exporters.trace.trace import trace, trace_into
from ptexport.runtime.bundle.folder import FILES, MANIFEST, MODEL, PARITY_JSON, README, WEIGHTS, Bundle
from ptexport.runtime.bundle.manifest import FORMAT, GraphEntry, Manifest, Precision, TaskEntry
from ptexport.runtime.bundle.measured import Candidate, Parity
from ptexport.runtime.engine.batching import logits_of
from ptexport.runtime.engine.golden import check_golden, golden_texts
from ptexport.runtime.engine.task_encoders import longest_row
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.runtime.rows.row import Row, check_label
from ptexport.toolkit.data.splits import pairs
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.folders import new_folder


def export(config: ExportConfig, progress: Progress) -> Manifest:
    """Export runs as one bundle.

    Raises:
        OutputError: the bundle exists, or cannot be written.
        MissingExtraError: ONNX Runtime, or for target tensorrt-rtx its package, is not installed.
        DataError: `rows` holds no rows, or rows with other texts than the template takes.
        RunError: a run cannot be read, or its backbone has changed since.
        ModelError: the backbone cannot be loaded.
        ExportError: the runs do not fit together, the graph's logits or labels differ from the model's, or the target
            does not accept the graph. No bundle is left then.
    """
    opsets = check_options(config)
    joint, rows = read_inputs(config)
    progress.stage("loading the backbone")
    backbone = load_backbone_of(joint.first.config, config.runs[0], stage=progress.stage)
    with ExitStack() as stack:
        traces = [_traced(joint, backbone, opset, stack, progress) for opset in opsets]
        progress.stage("computing the expected logits with Transformers")
        references = [
            Reference.compute(run, backbone, own, progress) for run, own in zip(joint.runs.values(), rows, strict=True)
        ]
        del backbone
        gc.collect()  # a session has its own copy of the weights: two at once would be the peak of an export
        folder = stack.enter_context(new_folder(config.out, force=config.force, files=FILES))
        autotuned = _autotune(joint, traces, references[0], folder, progress) if config.autotune else []
        (traced,) = [t for t in traces if t.info.opset == (winner(autotuned) if autotuned else opsets[0])]
        progress.stage("baking the tasks into the graph" if joint.several else "baking the task into the graph")
        baked = bake(joint, traced, folder, pipeline(joint, overridable=TARGETS[config.target].shares))
        if config.precision != "fp32":
            progress.stage(f"lowering to {config.precision}")
            baked = _lowered(config, joint, baked, folder, rows[0])
        check_target(config.target, folder)
        tasks, reports = _compared(config.precision, joint, references, folder, progress)
        manifest = _manifest(config, joint, traced, baked, tasks, autotuned)
        if config.compute_capabilities:
            manifest = _with_engine(config, folder, manifest, progress)
        _write_records(folder, manifest, joint, reports)
    return manifest


def _with_engine(config: ExportConfig, folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Put a TensorRT RTX engine into the folder, and describe it in the manifest."""
    longest = longest_row(Bundle(path=folder, manifest=manifest, labels=[]))
    engine, files = add_engine(folder, manifest.files[WEIGHTS], longest, config.compute_capabilities, progress)
    return msgspec.structs.replace(manifest, engine=engine, files={**manifest.files, **files})


def _traced(joint: JointTasks, backbone: Backbone, opset: int, stack: ExitStack, progress: Progress) -> Trace:
    pooling, has_prefix_kv = joint.first.config.pooling, joint.has_prefix_kv
    if joint.first.config.trained_backbone is None:
        progress.stage("tracing the backbone (once per backbone)")
        return trace(backbone, pooling, has_prefix_kv=has_prefix_kv, opset=opset, kind=joint.kind)
    progress.stage("tracing the backbone")
    place = stack.enter_context(TemporaryDirectory(prefix="ptexport-"))
    return trace_into(Path(place), backbone, pooling, has_prefix_kv=has_prefix_kv, opset=opset)


def _autotune(
    joint: JointTasks, traces: Sequence[Trace], reference: Reference, folder: Path, progress: Progress
) -> list[Candidate]:
    """Bake every trace in the bundle's file system, where files can share their blocks, and time the graphs."""
    with TemporaryDirectory(dir=folder) as parent:
        places = {traced.info.opset: Path(parent) / str(traced.info.opset) for traced in traces}
        for traced, place in zip(traces, places.values(), strict=True):
            place.mkdir()
            bake(joint, traced, place)
        return time_candidates(joint, places, reference.texts, progress)


def _lowered(
    config: ExportConfig, joint: JointTasks, baked: BakedGraph, folder: Path, rows: Sequence[Row]
) -> BakedGraph:
    """Replace a baked graph by one of the chosen precision."""
    run = joint.first
    (encoder,) = joint.encoders(folder).of_task
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
    """Number a row's label, or the labels of its choices; -1: the row has none."""
    labels = run.config.labels
    if row.label is None or (run.config.open_vocabulary and row.label not in labels):
        return [-1] * (len(row.choices) if row.choices else 1)
    if row.choices is None:
        check_label(row, labels, "correct the row, or leave its label out")
    return [labels.index(str(pair.label)) for pair in pairs([row], labels)]


def _compared(
    precision: Precision, joint: JointTasks, references: Sequence[Reference], folder: Path, progress: Progress
) -> tuple[list[TaskEntry], list[TaskReport]]:
    """Compare the graph with the model; returns the manifest's tasks and the reports, none in bf16.

    Raises:
        ExportError: they differ.
    """
    runs = joint.runs.items()
    if precision == "bf16":  # ONNX Runtime's CPU provider cannot run it
        return [task_entry(n, run, ref.golden, None, None) for (n, run), ref in zip(runs, references, strict=True)], []
    progress.stage("comparing with Transformers")
    reports = compare_graph(joint, references, folder)
    tasks = []
    for (name, run), reference, report in zip(runs, references, reports, strict=True):
        parity = summarize(report)
        fan_out = None if report.fan_out is None else comparison_of(report.fan_out)
        if precision == "fp32":
            fail_on_difference(name, parity, fan_out)
        else:
            parity = _tolerating(precision, parity, _golden_difference(joint, reference, folder))
        tasks.append(task_entry(name, run, reference.golden, parity, fan_out))
    tolerances = [task.parity.tolerance for task in tasks if task.parity is not None]
    return tasks, [msgspec.structs.replace(r, tolerance=t) for r, t in zip(reports, tolerances, strict=True)]


def _tolerating(precision: Precision, parity: Parity, golden_difference: float) -> Parity:
    """Set the tolerance of a lower precision: twice the largest difference, golden rows included.

    Golden rows must pass on every machine that opens the bundle.

    Raises:
        ExportError: a logit is not a finite number.
    """
    most = max(result.max_abs_diff for result in (parity.alone, parity.padded_right, parity.padded_left))
    if not math.isfinite(most + (parity.all_lengths or 0)):
        raise ExportError(f"precision {precision}: a logit is not a finite number; choose another precision")
    return msgspec.structs.replace(parity, tolerance=2 * max(most, golden_difference))


def _golden_difference(joint: JointTasks, reference: Reference, folder: Path) -> float:
    """Run the golden rows of the only task; returns the largest difference of a logit."""
    (encoder,), labels = joint.encoders(folder).of_task, joint.first.config.labels
    logits = logits_of(Graph.open(folder / MODEL), encoder.encode(golden_texts(reference.golden)))
    return check_golden(reference.golden, labels, np.stack(logits)[:, 0], math.inf, str(folder))


def _manifest(
    config: ExportConfig,
    joint: JointTasks,
    traced: Trace,
    baked: BakedGraph,
    tasks: list[TaskEntry],
    autotuned: list[Candidate],
) -> Manifest:
    first, info = joint.first, traced.info
    return Manifest(
        format=FORMAT,
        name=config.out.resolve().name,
        files=baked.files,
        backbone=backbone_entry(first.config.facts),
        graph=GraphEntry(
            target=config.target,
            opset=info.opset,
            ir_version=info.ir_version,
            precision=config.precision,
            lowered=baked.lowered,
            autotuned=autotuned,
            pooling=first.config.pooling,
            passes=baked.passes,
        ),
        fan_out=joint.of_all is not None,
        tasks=tasks,
        installed=None,
        versions={**first.versions, **info.versions, "onnxruntime": str(load_onnxruntime().__version__)},
    )


def _write_records(folder: Path, manifest: Manifest, joint: JointTasks, reports: list[TaskReport]) -> None:
    """Write manifest, model card and, if the graph was compared, parity.json."""
    (folder / MANIFEST).write_bytes(manifest.to_json())
    card = model_card(manifest, [run.metrics for run in joint.runs.values()])
    (folder / README).write_text(card, encoding="utf-8")
    if reports:
        report = ParityReport(
            bundle=manifest.name,
            backbone=manifest.backbone.name,
            precision=manifest.graph.precision,
            tasks=reports,
            versions=manifest.versions,
        )
        (folder / PARITY_JSON).write_bytes(report.to_json())
