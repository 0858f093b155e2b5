"""A run folder -> a bundle folder: load, trace, bake, prove, write; whole or not at all."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from ptexport.exporters.bake import BakedGraph, bake
from ptexport.exporters.card import model_card
from ptexport.exporters.parity import compare_graph, expected_logits, fail_on_difference, texts_to_check
from ptexport.exporters.targets import check_target, choose_opsets
from ptexport.exporters.trace import trace, trace_into
from ptexport.exporters.traced import Trace
from ptexport.exporters.tune import time_candidates, winner
from ptexport.runtime.bundle import HASHED, MANIFEST
from ptexport.runtime.graph import load_onnxruntime
from ptexport.runtime.manifest import FORMAT, BackboneEntry, Candidate, GraphEntry, Manifest, Parity, TargetName
from ptexport.runtime.rows import Row, check_texts, read_rows
from ptexport.runtime.tokens import Text
from ptexport.toolkit.backbone import Backbone
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.folders import check_free, new_folder
from ptexport.toolkit.run import Run
from ptexport.toolkit.template import Template
from ptexport.toolkit.tuning import load_backbone_of

README = "README.md"
FILES = (*HASHED, MANIFEST, README)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One export, as asked for.

    Attributes:
        run: the run's folder.
        out: the bundle's folder; its name is what the server calls the model.
        target: what it is for; see exporters/targets.py.
        opset: 18, portable, or 23, with one Attention node a layer; None: the target's default.
        tune: time the graphs that the target takes on this machine, and take the fastest.
        rows: a file of further rows to check instead of the run's own.
        force: replace a bundle that exists.
    """

    run: Path
    out: Path
    target: TargetName = "cpu"
    opset: int | None = None
    tune: bool = False
    rows: Path | None = None
    force: bool = False


class ExportProgress(Protocol):
    """What a caller may want to show while an export runs."""

    def stage(self, name: str) -> None:
        """Report what begins."""

    def rows(self, done: int, total: int) -> None:
        """Report rows checked."""


def export(config: ExportConfig, progress: ExportProgress) -> Manifest:
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
    opsets = choose_opsets(config.target, config.opset, tune=config.tune)
    check_free(config.out, force=config.force, files=FILES)
    onnxruntime = load_onnxruntime()
    run = Run.read(config.run)
    rows = _rows(run, config.rows)
    progress.stage("loading the backbone")
    backbone = load_backbone_of(run.config, config.run, stage=progress.stage)
    with ExitStack() as stack:
        traces = [_traced(run, backbone, opset, stack, progress) for opset in opsets]
        progress.stage("asking Transformers")
        texts = texts_to_check(run, rows)
        expected = expected_logits(run, backbone, texts, progress.rows)
        del backbone
        gc.collect()  # a session has its own copy of the weights: two at once would be the peak of an export
        folder = stack.enter_context(new_folder(config.out, force=config.force, files=FILES))
        tuned = _tune(run, traces, texts, folder, progress) if config.tune else []
        (traced,) = [t for t in traces if t.info.opset == (winner(tuned) if tuned else opsets[0])]
        progress.stage("baking the task in")
        baked = bake(run, traced, folder)
        check_target(config.target, folder)
        progress.stage("comparing with Transformers")
        parity = compare_graph(run, expected, folder, texts)
        fail_on_difference(parity)
        versions = {**run.versions, **traced.info.versions, "onnxruntime": str(onnxruntime.__version__)}
        name = config.out.resolve().name
        manifest = _manifest(name, run, traced, baked, parity, versions, target=config.target, tuned=tuned)
        (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, run.metrics), encoding="utf-8")
    return manifest


def _traced(run: Run, backbone: Backbone, opset: int, stack: ExitStack, progress: ExportProgress) -> Trace:
    read, leading = run.config.read, run.baked.leading
    if run.config.tuned is None:
        progress.stage("tracing it (once per backbone)")
        return trace(backbone, read, leading=leading, opset=opset)
    progress.stage("tracing it")
    place = stack.enter_context(TemporaryDirectory(prefix="ptexport-"))
    return trace_into(Path(place), backbone, read, leading=leading, opset=opset)


def _tune(
    run: Run, traces: Sequence[Trace], texts: Sequence[Text], folder: Path, progress: ExportProgress
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
    fields = Template.parse(run.config.template).fields
    for row in rows:
        check_texts(row, fields)
    return rows


def backbone_entry(facts: BackboneFacts) -> BackboneEntry:
    """Say in a manifest what backbone it is."""
    return BackboneEntry(
        fingerprint=facts.fingerprint,
        name=facts.name,
        revision=facts.revision,
        licence=facts.licence,
        model_type=facts.model_type,
    )


def _manifest(
    name: str,
    run: Run,
    traced: Trace,
    baked: BakedGraph,
    parity: Parity,
    versions: dict[str, str],
    *,
    target: TargetName,
    tuned: list[Candidate],
) -> Manifest:
    config, info = run.config, traced.info
    facts, template = config.facts, Template.parse(config.template)
    words = None if config.open_answers else config.label_words
    return Manifest(
        format=FORMAT,
        name=name,
        method=config.method + " --tune-backbone" * config.tune_backbone,
        files=baked.files,
        backbone=backbone_entry(facts),
        template=config.template,
        fields=template.fields,
        labels=None if config.open_answers else config.labels,
        label_words=None if words is None else dict(zip(config.labels, words, strict=True)),
        max_length=config.max_length - config.n_prefix - config.n_folded,
        abstain_below=None if run.metrics is None else run.metrics.abstain_below,
        graph=GraphEntry(
            target=target,
            opset=info.opset,
            ir_version=info.ir_version,
            precision="fp32",
            tuned=tuned,
            read=config.read,
            prompt_tokens=template.n_prompt,
            folded_tokens=config.n_prefix + config.n_folded,
            passes=baked.passes,
        ),
        parity=parity,
        versions=versions,
    )
