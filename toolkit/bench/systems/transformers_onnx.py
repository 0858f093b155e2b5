"""The model as the exporter of Transformers exports it, with its fusions for ONNX Runtime."""

from pathlib import Path

from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.graph import GraphInfo
from ptexport.toolkit.bench.systems.hf import load_classifier, load_extended
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.systems.plain_onnx import example
from ptexport.toolkit.bench.workers import Hardware


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export a sequence classifier if it pools like the run, else the model with its own head."""
    model = load_classifier(case)
    classifies = model is not None
    model = model if classifies else load_extended(case)
    model.set_attn_implementation("eager")  # its attention fusion matches this layout, at least on encoders
    config = OnnxConfig(dynamic=True, ort_fusions=hardware.provider)
    exported = OnnxExporter().export(model, example(Inputs(case).names), config=config)
    output = "logits" if classifies else LabelHead(case).output
    graph = exported.program.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == output]
    exported.save_pretrained(folder)
    setting = f'fp32, ort_fusions="{hardware.provider}"'
    GraphInfo(setting=setting, output="labels" if classifies else "all").write(folder)
