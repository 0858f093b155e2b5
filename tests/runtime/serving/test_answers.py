"""Predictions in, tensors out."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.errors import RequestError
from ptexport.runtime.serving.answers import all_output_tensors, needs_logits, output_tensors
from ptexport.runtime.serving.metadata import model_metadata
from ptexport.runtime.serving.questions import Options
from ptexport.runtime.serving.tensors import OutputRequest, Tensor

PREDICTIONS = [
    Prediction(label="no", probabilities={"yes": 0.25, "no": 0.75}, logits={"yes": -1.0, "no": 2.0}),
    Prediction(label=None, probabilities={"yes": 0.5, "no": 0.5}, logits={"yes": 0.0, "no": 0.0}, truncated=True),
]
RANKED = [
    Prediction(label="no", probabilities={"no": 0.75, "yes": 0.25}),
    Prediction(label="yes", probabilities={"yes": 0.6, "no": 0.4}),
]


def entry(name: str = "m", fields: tuple[str, ...] = ("text",), labels: list[str] | None = None) -> TaskEntry:
    """The part of a task's entry that the protocol reads."""
    return cast("TaskEntry", SimpleNamespace(name=name, fields=list(fields), labels=labels))


CLOSED = entry(labels=["yes", "no"])
LABEL = Tensor("label", "BYTES", [2], ["no", ""])
PROBABILITIES = Tensor("probabilities", "FP32", [2, 2], [0.25, 0.75, 0.5, 0.5])
LOGITS = Tensor("logits", "FP32", [2, 2], [-1.0, 2.0, 0.0, 0.0])


def asked(*names: str, classification: int = 0) -> list[OutputRequest]:
    return [OutputRequest(name=name, classification=classification) for name in names]


def test_every_output_in_the_order_asked_for() -> None:
    labels = Tensor("labels", "BYTES", [2, 2], ["yes", "no", "yes", "no"])
    truncated = Tensor("truncated", "BOOL", [2], [False, True])
    names = ("truncated", "logits", "labels", "probabilities", "label")
    expected = [truncated, LOGITS, labels, PROBABILITIES, LABEL]
    assert output_tensors(PREDICTIONS, asked(*names), Options(), CLOSED) == expected


def test_what_a_request_that_names_no_output_gets() -> None:
    """A prediction without a label has the empty string: tensors know no null."""
    assert output_tensors(PREDICTIONS, [], Options(), CLOSED) == [LABEL, PROBABILITIES]
    assert output_tensors(PREDICTIONS, [], Options(raw_scores=True), CLOSED) == [LABEL, LOGITS]
    ranked = output_tensors(RANKED, [], Options(top_k=2), CLOSED)
    assert [(tensor.name, tensor.data) for tensor in ranked] == [
        ("label", ["no", "yes"]),
        ("labels", ["no", "yes", "yes", "no"]),
        ("probabilities", [0.75, 0.25, 0.6, 0.4]),
    ]
    assert output_tensors(RANKED, [], Options(), entry()) == ranked, "of an open vocabulary the labels must be named"


def test_no_predictions_are_empty_tensors() -> None:
    assert [(t.shape, t.data) for t in output_tensors([], [], Options(), CLOSED)] == [([0], []), ([0, 2], [])]
    assert [t.shape for t in output_tensors([], asked("labels", "logits"), Options(), entry())] == [[0, 0]] * 2


def test_classes_are_strings_the_highest_score_first() -> None:
    (two,) = output_tensors(PREDICTIONS, asked("probabilities", classification=9), Options(), CLOSED)
    assert two == Tensor(
        "probabilities", "BYTES", [2, 2], ["0.750000:1:no", "0.250000:0:yes", "0.500000:0:yes", "0.500000:1:no"]
    )
    (one,) = output_tensors(PREDICTIONS, asked("logits", classification=1), Options(), CLOSED)
    assert (one.shape, one.data) == ([2, 1], ["2.000000:1:no", "0.000000:0:yes"])


@pytest.mark.parametrize("names", [("scores",), ("label", "label"), ("logits.label",)])
def test_outputs_that_are_unknown_or_repeated(names: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"^outputs: got an unknown or repeated name, need some of \['label', 'lab"):
        output_tensors(PREDICTIONS, asked(*names), Options(), CLOSED)


def test_outputs_of_all_tasks_have_the_tasks_names() -> None:
    tasks = {"tone": CLOSED, "mood": CLOSED}
    by_text = [{"tone": PREDICTIONS[n], "mood": RANKED[n]} for n in range(2)]
    made = all_output_tensors(by_text, [], Options(), tasks)
    assert [tensor.name for tensor in made] == ["tone.label", "tone.probabilities", "mood.label", "mood.probabilities"]
    assert made[1] == replace(PROBABILITIES, name="tone.probabilities")
    (labels,) = all_output_tensors(by_text, asked("mood.labels"), Options(), tasks)
    assert labels == Tensor("mood.labels", "BYTES", [2, 2], ["no", "yes", "yes", "no"])
    for name in ("label", "other.label", "tone.logits"):
        with pytest.raises(RequestError, match=r"outputs: got an unknown or repeated name, need some of .'tone.label'"):
            all_output_tensors(by_text, asked(name), Options(), tasks)


def test_logits_are_made_only_where_they_are_asked_for() -> None:
    assert needs_logits(asked("label", "logits"), Options())
    assert needs_logits([], Options(raw_scores=True))
    assert not needs_logits(asked("label", "probabilities"), Options())


def test_metadata_of_a_pair_model_and_of_an_open_vocabulary() -> None:
    metadata = model_metadata("m", ["7"], entry(fields=("text", "text_b"), labels=["yes", "no"]), {"any": 1})
    assert [i["name"] for i in metadata["inputs"]] == ["text", "text_b"]
    assert metadata["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
    assert (metadata["platform"], metadata["versions"]) == ("onnxruntime_onnx", ["7"])
    assert metadata["parameters"] == {"any": 1}
    assert model_metadata("m", [], entry(), {})["outputs"][1]["shape"] == [-1, -1]
