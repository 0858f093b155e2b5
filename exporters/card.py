"""A manifest and its runs' metrics -> the bundle's model card, for people, with the metadata that the hub reads."""

import re
from collections.abc import Sequence
from typing import cast

from huggingface_hub import EvalResult, ModelCardData

from ptexport.runtime.bundle.manifest import Manifest, TaskEntry
from ptexport.runtime.bundle.measured import Comparison, Parity, PrecisionEntry
from ptexport.toolkit.methods import METHODS, MethodName
from ptexport.toolkit.run.metrics import Metrics

_CARD = """\
---
{metadata}---
# {name}

A text classifier made by ptexport: the language model {backbone} and {method}, in one ONNX graph. Needs ONNX Runtime
and `tokenizers`, no PyTorch.

{task}- Precision {precision}, opset {opset}, IR {ir_version}{lowered}

```python
from ptexport.runtime import Engine

print(Engine.open("{name}").{example})
```

{opened}
"""

_MULTITASK_CARD = """\
---
{metadata}---
# {name}

Text classifiers for {n_tasks} tasks, made by ptexport: the language model {backbone} and each task's own trained
arrays, in one ONNX graph. Needs ONNX Runtime and `tokenizers`, no PyTorch. {passes}

- Precision {precision}, opset {opset}, IR {ir_version}

{tasks}
```python
from ptexport.runtime import Engine

print(Engine.open("{name}").task("{first}").{example})
```

{opened}
"""

_TASK = """\
- Template: `{template}`
- Labels: {labels}
- {origin}
- {parity}
- Longest input: {max_length} tokens with the template ({folded_tokens} more are folded); longer texts are truncated
{calibration}"""


_METHODS = {
    "p-tuning": "{n} virtual tokens trained for it",
    "p-tuning --tune-backbone": "{n} virtual tokens, both trained",
    "p-tuning-v2": "past key/values of {n} positions, trained for each of its layers",
    "prefix": "past key/values of {n} positions, trained for each of its layers",
    "prompt-tuning": "{n} virtual tokens trained for it",
    "lora": "low-rank updates trained and merged into it",
    "fine-tune": "a linear head, both trained",
    "pet": "a hand-written template, trained for it",
    "manual": "a hand-written template, nothing trained",
    "search": "{n} words that were searched for",
}


_EXAMPLES = {
    "text": 'predict(["…"])',
    "text_b": 'predict([("…", "…")])',
    "choice": 'choose([("…", ["…", "…"])])',
}
"""Calls, by the last text of a row."""

_OPENED = (
    "`Engine.open` and `ptexport predict` take this folder, or the name of its repository on the hub: `hub:OWNER/{}`."
)

_ON_THE_HUB = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Where the models of the aliases are on the hub."""


def model_card(manifest: Manifest, metrics: Sequence[Metrics | None]) -> str:
    """Write the card.

    Args:
        manifest: of the bundle.
        metrics: of each task's training; None: it was trained elsewhere.
    """
    graph, first = manifest.graph, manifest.tasks[0]
    shared = {
        "metadata": _metadata(manifest, metrics),
        "opened": _OPENED.format(manifest.name),
        "name": manifest.name,
        "backbone": manifest.backbone.name,
        "precision": graph.precision,
        "opset": graph.opset,
        "ir_version": graph.ir_version,
        "example": _EXAMPLES[first.fields[-1]],
    }
    if len(manifest.tasks) == 1:
        lowered = "" if graph.lowered is None else _lowered(graph.lowered)
        return _CARD.format(method=_method(first), task=_task(first, metrics[0]), lowered=lowered, **shared)
    passes = (
        "One forward pass over a text can serve all tasks."
        if manifest.fan_out
        else "A text has one forward pass per task; texts of different tasks can share a batch."
    )
    tasks = "\n".join(
        f"## {task.name}\n\n- Method: {manifest.backbone.name} and {_method(task)}\n{_task(task, own)}"
        for task, own in zip(manifest.tasks, metrics, strict=True)
    )
    n_tasks = len(manifest.tasks)
    return _MULTITASK_CARD.format(tasks=tasks, n_tasks=n_tasks, passes=passes, first=first.name, **shared)


def _metadata(manifest: Manifest, metrics: Sequence[Metrics | None]) -> str:
    """Write the metadata that the hub reads, as YAML; see https://huggingface.co/docs/hub/model-cards."""
    base_model = _base_model(manifest)
    names = dict.fromkeys(cast(MethodName, task.method.split()[0]) for task in manifest.tasks)
    methods = [METHODS[name] for name in names]
    trained = any(method.backbone_training != "nothing" for method in methods) or "--tune" in manifest.tasks[0].method
    soft = any(method.virtual_token not in (None, "word") for method in methods)
    precision = manifest.graph.precision
    data = ModelCardData(
        license=manifest.backbone.licence or "unknown",
        base_model=base_model,
        # Without it, the hub takes a repository with ONNX files for a quantized model.
        base_model_relation=None if base_model is None else "finetune" if trained else "adapter",
        library_name="ptexport",
        pipeline_tag="text-classification",
        tags=[
            "onnx",
            *(["soft-prompt"] if soft else []),
            *names,
            *([] if precision == "fp32" else [precision]),
        ],
        model_name=manifest.name,
        eval_results=_eval_results(manifest, metrics),
    )
    return data.to_yaml(original_order=["license"]) + "\n"


def _base_model(manifest: Manifest) -> str | None:
    """Return the backbone's name on the hub; None: it was a folder."""
    backbone = manifest.backbone
    if re.fullmatch("[0-9a-f]{40}", backbone.revision or ""):  # a commit
        return backbone.name
    return _ON_THE_HUB.get(backbone.name)


def _eval_results(manifest: Manifest, metrics: Sequence[Metrics | None]) -> list[EvalResult] | None:
    """List the tasks' test accuracies; they hold for graphs in fp32, which predict the same labels as the model."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="held-out-rows",
            dataset_name=f"{own.n_test} held-out rows",
            dataset_config=None if len(manifest.tasks) == 1 else task.name,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=round(own.test_accuracy, 4),
        )
        for task, own in zip(manifest.tasks, metrics, strict=True)
        if own is not None and manifest.graph.precision == "fp32"
    ]
    return results or None


def _method(task: TaskEntry) -> str:
    return _METHODS[task.method].format(n=task.prompt_tokens)


def _task(task: TaskEntry, metrics: Metrics | None) -> str:
    return _TASK.format(
        template=task.template,
        labels="every word that is one token" if task.labels is None else ", ".join(task.labels),
        origin=_origin(metrics),
        parity=_parity(task.parity, task.fan_out),
        max_length=task.max_length,
        folded_tokens=task.folded_tokens,
        calibration="" if metrics is None else _calibration(task, metrics),
    )


def _parity(parity: Parity | None, fan_out: Comparison | None) -> str:
    if parity is None:
        return "Parity was not measured: ONNX Runtime's CPU provider cannot run this precision"
    kinds = [parity.alone, parity.padded_right, parity.padded_left, *([] if fan_out is None else [fan_out])]
    flips = {row for kind in kinds for row in kind.flips}
    most = max(kind.max_abs_diff for kind in kinds)
    differ = f"{len(flips)} labels differ" if flips else "no label differs"
    said = f"[Parity](parity.json) with Transformers over {parity.rows} rows"
    return f"{said}: largest difference of a logit {most:.1e}, {differ}"


def _lowered(entry: PrecisionEntry) -> str:
    """Describe the accuracy of a lower precision, and count its products by recipe."""
    said = ""
    if entry.accuracy is not None:
        said = f"; accuracy {entry.accuracy:.1%} on {entry.rows} rows, {entry.accuracy_fp32:.1%} in fp32"
    counts = ", ".join(f"{count} in {recipe}" for recipe, count in sorted(entry.products.items()))
    return said + (f"; products: {counts}" if counts else "")


def _origin(metrics: Metrics | None) -> str:
    if metrics is None:
        return "Trained elsewhere and imported; its accuracy was not measured here"
    return (
        f"Test accuracy: {metrics.test_accuracy:.1%} of {metrics.n_test} rows (seed {metrics.seed}, "
        f"trained on {metrics.n_train} rows)"
    )


def _calibration(task: TaskEntry, metrics: Metrics) -> str:
    lines = ""
    if metrics.temperature != 1:
        lines += f"- Probabilities are calibrated on {metrics.n_dev} rows: temperature {metrics.temperature:.2f}\n"
    if task.abstain_below is not None:
        lines += f"- Predicts no label (`None`) if the largest probability is below {task.abstain_below:.3f}\n"
    return lines
