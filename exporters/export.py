"""A run folder -> a bundle folder: load, trace, bake, prove, write; whole or not at all."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from ptexport.exporters.bake import BakedGraph, bake
from ptexport.exporters.card import model_card
from ptexport.exporters.oracle import expected_logits
from ptexport.exporters.page import page
from ptexport.exporters.parity import (
    always_checked,
    compare_graph,
    fail_on_difference,
    texts_of_lengths,
    texts_to_check,
    tolerance_of,
)
from ptexport.exporters.report import PARITY_HTML, PARITY_JSON, ParityReport, summarize
from ptexport.exporters.trace import trace, trace_into
from ptexport.exporters.traced import Trace
from ptexport.runtime.bundle import HASHED, MANIFEST
from ptexport.runtime.graph import load_onnxruntime
from ptexport.runtime.manifest import FORMAT, BackboneEntry, GraphEntry, Manifest, Parity
from ptexport.runtime.rows import Row, check_texts, read_rows
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.folders import check_free, new_folder
from ptexport.toolkit.run import Run
from ptexport.toolkit.template import Template
from ptexport.toolkit.tuning import load_backbone_of

README = "README.md"
FILES = (*HASHED, MANIFEST, README, PARITY_JSON, PARITY_HTML)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One export, as asked for.

    Attributes:
        run: the run's folder.
        out: the bundle's folder; its name is what the server calls the model.
        opset: 18, portable, or 23, with one Attention node a layer.
        rows: a file of further rows to check instead of the run's own.
        force: replace a bundle that exists.
    """

    run: Path
    out: Path
    opset: int = 18
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
        ExportError: the graph does not answer as the model does; no bundle is left then.
    """
    check_free(config.out, force=config.force, files=FILES)
    onnxruntime = load_onnxruntime()
    run = Run.read(config.run)
    rows = _rows(run, config.rows)
    progress.stage("loading the backbone")
    backbone = load_backbone_of(run.config, config.run, stage=progress.stage)
    read, leading = run.config.read, run.baked.leading
    with ExitStack() as stack:
        if run.config.tuned is None:
            progress.stage("tracing it (once per backbone)")
            traced = trace(backbone, read, leading=leading, opset=config.opset)
        else:
            progress.stage("tracing it")
            place = stack.enter_context(TemporaryDirectory(prefix="ptexport-"))
            traced = trace_into(Path(place), backbone, read, leading=leading, opset=config.opset)
        folder = stack.enter_context(new_folder(config.out, force=config.force, files=FILES))
        progress.stage("baking the task in")
        baked = bake(run, traced, folder)
        progress.stage("comparing with Transformers")
        texts, lengths = texts_to_check(run, rows), texts_of_lengths(run)
        expected = expected_logits(run, backbone, [*texts, *lengths], progress.rows)
        compared = compare_graph(run, expected, folder, texts, lengths)
        parity = summarize(compared, rows=len(texts), tolerance=tolerance_of(run))
        fail_on_difference(parity)
        versions = {**run.versions, **traced.info.versions, "onnxruntime": str(onnxruntime.__version__)}
        manifest = _manifest(config.out.resolve().name, run, traced, baked, parity, versions)
        (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, run.metrics), encoding="utf-8")
        report = ParityReport(
            bundle=manifest.name,
            backbone=run.config.facts.name,
            rows=len(texts),
            always=len(always_checked(run)),
            tolerance=parity.tolerance,
            max_abs_logit=float(abs(expected[: len(texts)]).max()),
            variants=[compared],
            versions=versions,
        )
        (folder / PARITY_JSON).write_bytes(report.to_json())
        (folder / PARITY_HTML).write_bytes(page(report))
    return manifest


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
            opset=info.opset,
            ir_version=info.ir_version,
            precision="fp32",
            read=config.read,
            prompt_tokens=template.n_prompt,
            folded_tokens=config.n_prefix + config.n_folded,
            passes=baked.passes,
        ),
        parity=parity,
        versions=versions,
    )
