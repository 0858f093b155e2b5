"""The untouched model in ONNX as Transformers' own exporter makes it, with its fusions for ONNX Runtime."""

from pathlib import Path

from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.graph import Exported
from ptexport.toolkit.bench.systems.hf import load_classifier, load_lengthened
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.systems.plain_onnx import example
from ptexport.toolkit.bench.workers import Hardware


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export as a classifier where that reads what the run does: no other logits are made then."""
    model = load_classifier(case)
    classifies = model is not None
    model = model if classifies else load_lengthened(case)
    model.set_attn_implementation("eager")  # whose layout its fusion of attention knows, at least on encoders
    config = OnnxConfig(dynamic=True, ort_fusions=hardware.provider)
    exported = OnnxExporter().export(model, example(Inputs(case).names), config=config)
    output = "logits" if classifies else Reader(case).output
    graph = exported.program.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == output]
    exported.save_pretrained(folder)
    Exported(setting=f'fp32, ort_fusions="{hardware.provider}"', gives="labels" if classifies else "all").write(folder)
