"""Optimum: the model as optimum-onnx exports and runs it, its embedding table made longer by the prompt.

Runs under an older Transformers than ours, which its requirements bring.
"""

from pathlib import Path
from typing import Any

import torch

from ptexport.runtime.ort.providers import choose_provider
from ptexport.toolkit.bench.systems.case import Case
from ptexport.toolkit.bench.systems.hf import load_classifier, load_lengthened, read, tensors
from ptexport.toolkit.bench.systems.inputs import Inputs, Reader
from ptexport.toolkit.bench.workers import Hardware

_CLASSES = {
    "text-classification": "ORTModelForSequenceClassification",
    "text-generation": "ORTModelForCausalLM",
    "fill-mask": "ORTModelForMaskedLM",
    "feature-extraction": "ORTModelForFeatureExtraction",
}


def prepare(case: Case, folder: Path, hardware: Hardware) -> None:
    """Export as a classifier where that reads what the run does: no other logits are made then."""
    from optimum.exporters.onnx import onnx_export_from_model

    model, task = load_classifier(case), "text-classification"
    if model is None:
        model, task = load_lengthened(case), "feature-extraction"
        if case.config.word_ids is not None:
            task = "text-generation" if case.config.causal else "fill-mask"
    onnx_export_from_model(model, folder, task=task, do_validation=False)
    (folder / "task").write_text(task, encoding="utf-8")


class System:
    """The graph in ONNX Runtime, called as Optimum calls it."""

    def __init__(self, case: Case, folder: Path, hardware: Hardware) -> None:
        import onnxruntime
        import optimum.onnxruntime as optimum

        self._device = hardware.provider
        task = (folder / "task").read_text("utf-8")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = hardware.threads
        besides = {"use_cache": False} if task == "text-generation" else {}
        self._model: Any = getattr(optimum, _CLASSES[task]).from_pretrained(
            folder,
            provider=choose_provider(hardware.provider).name,
            session_options=options,
            **besides,
        )
        self.setting = f"fp32, {task}"
        self._classifies, self._inputs, self._reader = task == "text-classification", Inputs(case), Reader(case)
        self.files = sorted(path for path in folder.iterdir() if path.name.startswith("model.onnx"))
        self.task_files = self.files  # the prompt is in the embedding table

    @torch.inference_mode()
    def logits(self, texts: list[str]) -> list[list[float]]:
        """Score texts."""
        given = tensors(self._inputs, texts, self._device)
        output = self._model(**given)
        return output.logits.tolist() if self._classifies else read(self._reader, output, given["input_ids"])
