"""Run folders on one backbone -> one bundle of many tasks: join, trace, bake, prove, write; whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.exporters.export import backbone_entry
from ptexport.exporters.multitask.join import Joined
from ptexport.exporters.parity.compare import (
    compare,
    fail_on_difference,
    golden_rows,
    mixed_batches,
    texts_to_check,
    tolerance_of,
)
from ptexport.exporters.parity.reference import Report, expected_logits
from ptexport.exporters.passes.bind import BindInputsPass
from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.edit import edit
from ptexport.exporters.passes.ort_rewrites import rewrites
from ptexport.exporters.targets.targets import check_target, choose_opsets
from ptexport.exporters.trace.cached import Trace
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.folder import HASHED_TASKS, MANIFEST, MODEL, TEMPLATES, TOKENIZER, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import FORMAT, FileEntry, TargetName, TaskEntry, TasksManifest
from ptexport.runtime.bundle.measured import Comparison, Parity
from ptexport.runtime.bundle.signature import SIGNATURE
from ptexport.runtime.engine.tasks import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ExportError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import load_onnxruntime
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.folders import check_free, clone, new_folder
from ptexport.toolkit.template.template import Template

FILES = (*HASHED_TASKS, MANIFEST, SIGNATURE)


def export_tasks(
    runs: Sequence[Path],
    out: Path,
    progress: Progress,
    *,
    target: TargetName = "cpu",
    opset: int | None = None,
    force: bool = False,
) -> TasksManifest:
    """Export runs as one bundle; each task has the name of its run's folder.

    Args:
        runs: two folders or more, trained on one frozen backbone.
        out: the bundle's folder.
        progress: told what begins.
        target: what it is for; see targets.py.
        opset: 18, portable, or 23, with one Attention node a layer; None: the target's default.
        force: replace a bundle that exists.

    Raises:
        OutputError: the bundle exists, or cannot be written.
        MissingExtraError: ONNX Runtime is not installed.
        RunError: a run cannot be read.
        ModelError: the backbone cannot be loaded.
        ExportError: the runs do not go together, the graph does not answer as the model does, or its target would not
            take it.
    """
    (chosen,) = choose_opsets(target, opset, autotune=False)
    check_free(out, force=force, files=FILES)
    load_onnxruntime()  # which may be missing: said before the work rather than after it
    joined = _read(runs)
    progress.stage("loading the backbone")
    backbone = load_backbone_of(joined.first.config, runs[0], stage=progress.stage)
    progress.stage("tracing it (once per backbone)")
    traced = trace(
        backbone, joined.first.config.pooling, has_prefix_kv=joined.has_prefix_kv, opset=chosen, kind=joined.kind
    )
    with new_folder(out, force=force, files=FILES) as folder:
        progress.stage(f"baking {len(runs)} tasks in")
        files = bake_tasks(joined, traced, folder)
        check_target(target, folder)
        progress.stage("comparing with Transformers")
        tasks = check_tasks(joined, backbone, folder, progress.rows)
        for task in tasks:
            _fail_on_difference(task)
        manifest = _manifest(out, target, joined, traced, files, tasks)
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def _manifest(
    out: Path,
    target: TargetName,
    joined: Joined,
    traced: Trace,
    files: dict[str, FileEntry],
    tasks: list[TaskEntry],
) -> TasksManifest:
    info = traced.info
    return TasksManifest(
        format=FORMAT,
        name=out.resolve().name,
        files=files,
        backbone=backbone_entry(joined.first.config.facts),
        target=target,
        opset=info.opset,
        ir_version=info.ir_version,
        precision="fp32",
        pooling=joined.first.config.pooling,
        fan_out=joined.of_all is not None,
        tasks=tasks,
        versions={
            **joined.first.versions,
            **info.versions,
            "onnxruntime": str(load_onnxruntime().__version__),
        },
    )


def _read(runs: Sequence[Path]) -> Joined:
    """Read runs and join them, each as a task by its folder's name."""
    names = [path.resolve().name for path in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"tasks: got {twice[0]} twice, need a name for each; rename a run's folder")
    return Joined({name: Run.read(path) for name, path in zip(names, runs, strict=True)})


def _fail_on_difference(task: TaskEntry) -> None:
    """Refuse a task that is answered otherwise than its model does, alone or together with all others."""
    fail_on_difference(task.parity)
    if task.fan_out is not None and not task.fan_out.max_abs_diff <= task.parity.tolerance:
        got = f"largest difference {task.fan_out.max_abs_diff:.2g}"
        raise ExportError(f"task {task.name}: parity (all tasks of one row): {got}; please report the model")


def bake_tasks(joined: Joined, traced: Trace, folder: Path) -> dict[str, FileEntry]:
    """Write graph, weights and tokenizers into an empty folder."""
    model = ir.load(traced.path / MODEL)
    edit(model, *rewrites(), BindInputsPass(joined.arrays()), DeadCodePass(), ForgetIntermediateShapesPass())
    ir.save(model, folder / MODEL)
    clone(traced.path / WEIGHTS, folder / WEIGHTS)
    tokenizers = joined.tokenizers()
    (folder / TOKENIZER).write_text(tokenizers.vocabulary, encoding="utf-8")
    (folder / TEMPLATES).write_text(tokenizers.templates, encoding="utf-8")
    return {**{name: file_entry(folder / name) for name in (MODEL, TOKENIZER, TEMPLATES)}, WEIGHTS: traced.info.weights}


def check_tasks(joined: Joined, backbone: Backbone, folder: Path, report: Report) -> list[TaskEntry]:
    """Compare every task's rows, in batches with those of the others, with the untouched model alone.

    Returns:
        What the manifest says of each task; the differences may be too large.
    """
    names = list(joined.runs)
    texts = [texts_to_check(run, run.check_rows) for run in joined.runs.values()]
    expected = [
        expected_logits(run, backbone, own, report) for run, own in zip(joined.runs.values(), texts, strict=True)
    ]
    tasks = [_entry(name, run) for name, run in joined.runs.items()]
    contents = [(folder / name).read_text(encoding="utf-8") for name in (TOKENIZER, TEMPLATES)]
    encoders = TaskEncoders(contents[0], msgspec.json.decode(contents[1]), tasks)
    graph = Graph.open(folder / MODEL)
    whose = np.repeat(np.arange(len(names)), [len(own) for own in texts])
    encodings = [
        encoding for name, own in zip(names, texts, strict=True) for encoding in encoders.of_task[name].encode(own)
    ]

    def compared(some: list[Encoding], kept: NDArray[np.bool_], how: str) -> list[Comparison]:
        rows = np.flatnonzero(kept)
        batches = [[i] for i in range(len(rows))] if how == "alone" else list(mixed_batches(len(rows)))
        got = np.empty((len(rows), len(names), max(len(task.labels) for task in tasks)), dtype=np.float32)
        for number, batch in enumerate(batches):
            side = "left" if how == "left" or (how == "both" and number % 2) else "right"
            ids = TextEncoder.pad([some[rows[i]] for i in batch], side="left" if side == "left" else "right")
            got[batch] = graph.run(ids)
        return [
            compare(got[whose[rows] == t, t, : len(task.labels)], expected[t][kept[whose == t]])
            for t, task in enumerate(tasks)
        ]

    every = np.ones(len(encodings), dtype=bool)
    alone, right, left = (compared(encodings, every, how) for how in ("alone", "right", "left"))
    together: Sequence[Comparison | None] = [None] * len(names)
    if encoders.of_all is not None:
        shared = [encoding for own in texts for encoding in encoders.of_all.encode(own)]
        together = compared(shared, np.array([not encoding.overflowing for encoding in shared]), "both")
    return [
        msgspec.structs.replace(
            task,
            fan_out=together[t],
            golden=golden_rows(run, backbone),
            parity=Parity(
                rows=len(texts[t]),
                tolerance=tolerance_of(run),
                alone=alone[t],
                padded_right=right[t],
                padded_left=left[t],
            ),
        )
        for t, (task, run) in enumerate(zip(tasks, joined.runs.values(), strict=True))
    ]


def _entry(name: str, run: Run) -> TaskEntry:
    """Say what a task is; its parity and golden rows are not known yet."""
    config, template, words = run.config, Template.parse(run.config.template), run.config.label_words
    unknown = Comparison(max_abs_diff=float("inf"), mean_abs_diff=float("inf"), flips=[])
    return TaskEntry(
        name=name,
        method=config.method,
        template=config.template,
        fields=template.fields,
        labels=config.labels,
        label_words=None if words is None else dict(zip(config.labels, words, strict=True)),
        max_length=config.max_length - config.n_prefix - config.n_folded,
        abstain_below=None if run.metrics is None else run.metrics.abstain_below,
        prompt_tokens=template.n_prompt,
        folded_tokens=config.n_prefix + config.n_folded,
        parity=Parity(rows=0, tolerance=0.0, alone=unknown, padded_right=unknown, padded_left=unknown),
        fan_out=None,
        golden=[],
    )
