"""The model as optimum-onnx exports and runs it, with the prompt embeddings in its embedding table.

Runs with an older Transformers, which is among its requirements.
"""

from pathlib import Path
from typing import Any

import torch

from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import label_logits, load_classifier, load_extended, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead
from ptexport.toolkit.bench.workers import Hardware

_CLASSES = {
    "text-classification": "ORTModelForSequenceClassification",
    "text-generation": "ORTModelForCausalLM",
    "fill-mask": "ORTModelForMaskedLM",
    "feature-extraction": "ORTModelForFeatureExtraction",
}


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export a sequence classifier if it pools like the run, else the model with its own head."""
    from optimum.exporters.onnx import onnx_export_from_model

    model, task = load_classifier(case), "text-classification"
    if model is None:
        model, task = load_extended(case), "feature-extraction"
        if case.config.word_ids is not None:
            task = "text-generation" if case.config.causal else "fill-mask"
    onnx_export_from_model(model, folder, task=task, do_validation=False)
    (folder / "task").write_text(task, encoding="utf-8")


class OptimumOnnx:
    """The graph in Optimum's ONNX Runtime model."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        import onnxruntime
        import optimum.onnxruntime as optimum

        self._device = hardware.provider
        task = (folder / "task").read_text("utf-8")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = hardware.threads
        more = {"use_cache": False} if task == "text-generation" else {}
        self._model: Any = getattr(optimum, _CLASSES[task]).from_pretrained(
            folder,
            provider=choose_provider(hardware.provider).name,
            session_options=options,
            **more,
        )
        self.setting = f"fp32, {task}"
        self._classifies, self._inputs, self._head = task == "text-classification", Inputs(case), LabelHead(case)
        self.files = sorted(path for path in folder.iterdir() if path.name.startswith("model.onnx"))
        self.task_files = self.files  # its embedding table contains the prompt

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Compute the logits of texts."""
        given = tensors(self._inputs, texts, self._device)
        output = self._model(**given)
        if self._classifies:
            logits: list[list[float]] = output.logits.tolist()
            return logits
        return label_logits(self._head, output, given["input_ids"])


SYSTEM = OptimumOnnx
