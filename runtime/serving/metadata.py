"""Models -> what the protocol says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ptexport.runtime.bundle.manifest import ALL, TaskEntry
from ptexport.runtime.bundle.measured import Parity
from ptexport.runtime.serving.models import Model


def model_metadata(
    name: str, versions: Sequence[str], task: TaskEntry, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Lay out the metadata of a model, with the outputs that a request gets which names none."""
    n = -1 if task.labels is None else len(task.labels)
    outputs = {
        "label": {"datatype": "BYTES", "shape": [-1]},
        "probabilities": {"datatype": "FP32", "shape": [-1, n]},
    }
    return {
        "name": name,
        "versions": [*versions],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in task.fields],
        "outputs": [{"name": output, **outputs[output]} for output in outputs],
        "parameters": dict(parameters),
    }


def card_of(model: Model) -> dict[str, Any]:
    """Return what the metadata of a model says beyond its tensors."""
    entry, manifest, info = model.task.entry, model.engine.manifest, model.engine.info
    return {
        "labels": entry.labels or [],
        "outputs_on_request": ["labels", "logits", "truncated"],
        "method": entry.method,
        "template": entry.template,
        "max_length": entry.max_length,
        "backbone": manifest.backbone.name,
        "licence": manifest.backbone.licence,
        "precision": manifest.graph.precision,
        "opset": manifest.graph.opset,
        "provider": info.provider,
        "parity_rows": entry.parity.rows if entry.parity else None,
        "parity_max_abs_diff": _largest_difference(entry.parity),
        "golden_max_abs_diff": info.golden_max_abs_diff,
    }


def _largest_difference(parity: Parity | None) -> float | None:
    if parity is None:
        return None
    return max(compared.max_abs_diff for compared in (parity.alone, parity.padded_right, parity.padded_left))


def metadata_of_all(models: Sequence[Model]) -> dict[str, Any]:
    """Lay out the metadata of the model that stands for several, whose outputs are named TASK.OUTPUT."""
    made = model_metadata(ALL, [], models[0].task.entry, {"tasks": [model.name for model in models]})
    made["outputs"] = [
        {**output, "name": f"{model.name}.{output['name']}"}
        for model in models
        for output in model_metadata(model.name, [], model.task.entry, {})["outputs"]
        if output["name"] != "logits"
    ]
    return made
