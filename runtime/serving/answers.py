"""Predictions -> tensors of a response, and what a model's outputs are."""

from collections.abc import Mapping, Sequence

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.serving.questions import Options, check_outputs
from ptexport.runtime.serving.tensors import OutputRequest, Tensor

OUTPUTS = ("label", "labels", "probabilities", "logits", "truncated")
"""Every output: the most probable label, the labels of the other two, and whether the text was cut."""


def default_outputs(options: Options, task: TaskEntry) -> list[str]:
    """Name the outputs of a request that names none."""
    scores = "logits" if options.raw_scores else "probabilities"
    ranked = options.top_k is not None or task.labels is None
    return ["label", "labels", scores] if ranked else ["label", scores]


def output_tensors(
    predictions: Sequence[Prediction], outputs: Sequence[OutputRequest], options: Options, task: TaskEntry
) -> list[Tensor]:
    """Lay out predictions as the requested tensors, row-major.

    A prediction without a label has the empty string.

    Raises:
        RequestError: an output is unknown or repeated.
    """
    check_outputs(outputs, OUTPUTS)
    wanted = outputs or [OutputRequest(name=name) for name in default_outputs(options, task)]
    return [_tensor(output, predictions, task) for output in wanted]


def all_output_tensors(
    by_text: Sequence[Mapping[str, Prediction]],
    outputs: Sequence[OutputRequest],
    options: Options,
    tasks: Mapping[str, TaskEntry],
) -> list[Tensor]:
    """Lay out the predictions of all tasks: outputs are named TASK.OUTPUT. They have no logits.

    Raises:
        RequestError: an output is unknown or repeated.
    """
    known = {f"{name}.{output}": (name, output) for name in tasks for output in OUTPUTS if output != "logits"}
    check_outputs(outputs, list(known))
    default = [
        OutputRequest(name=f"{name}.{output}")
        for name, task in tasks.items()
        for output in default_outputs(options, task)
    ]
    made = []
    for output in outputs or default:
        name, what = known[output.name]
        one = OutputRequest(name=what, classification=output.classification)
        tensor = _tensor(one, [predictions[name] for predictions in by_text], tasks[name])
        made.append(Tensor(output.name, tensor.datatype, tensor.shape, tensor.data))
    return made


def needs_logits(outputs: Sequence[OutputRequest], options: Options) -> bool:
    """Return whether predictions need their logits for the requested outputs."""
    return options.raw_scores or any(output.name.rpartition(".")[2] == "logits" for output in outputs)


def _tensor(output: OutputRequest, predictions: Sequence[Prediction], task: TaskEntry) -> Tensor:
    name, n = output.name, len(predictions)
    if name == "label":
        return Tensor(name, "BYTES", [n], [prediction.label or "" for prediction in predictions])
    if name == "truncated":
        return Tensor(name, "BOOL", [n], [prediction.truncated for prediction in predictions])
    scores = [(p.logits or {}) if name == "logits" else p.probabilities for p in predictions]
    width = len(scores[0]) if scores else len(task.labels or [])
    if name == "labels":
        return Tensor(name, "BYTES", [n, width], [label for row in scores for label in row])
    if output.classification:
        return _classes(output, scores, min(output.classification, width), task.labels or [])
    return Tensor(name, "FP32", [n, width], [value for row in scores for value in row.values()])


def _classes(output: OutputRequest, scores: Sequence[Mapping[str, float]], k: int, labels: Sequence[str]) -> Tensor:
    """Lay out the highest scores as strings "score:index:label" (Triton, extension_classification.md).

    The index is the label's number; its rank, where the vocabulary is open.
    """
    made: list[str] = []
    numbers = {label: number for number, label in enumerate(labels)}
    for row in scores:
        ranked = sorted(row.items(), key=lambda item: -item[1])[:k]
        made += [f"{score:f}:{numbers.get(label, rank)}:{label}" for rank, (label, score) in enumerate(ranked)]
    return Tensor(output.name, "BYTES", [len(scores), k], made)
