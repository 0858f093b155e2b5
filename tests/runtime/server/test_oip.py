"""Bodies in, texts out, without a server."""

import re
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.errors import RequestError
from ptexport.runtime.server.oip import (
    MAX_TEXTS,
    InferInput,
    InferRequest,
    PredictRequest,
    decode,
    infer_response,
    model_metadata,
    predict_response,
    texts_of_infer,
    texts_of_predict,
)

ONE = ["text"]
TWO = ["text", "text_b"]
PREDICTIONS = [
    Prediction(label="no", probabilities={"yes": 0.25, "no": 0.75}),
    Prediction(label="yes", probabilities={"yes": 0.5, "no": 0.5}),
]


def entry(*fields: str) -> TaskEntry:
    """The part of a task's entry that the protocol reads."""
    return cast("TaskEntry", SimpleNamespace(name="m", fields=list(fields), labels=["yes", "no"]))


def tensor(data: Any, shape: list[int], name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": "BYTES", "data": data, **more}


def infer(*inputs: dict[str, Any], **more: Any) -> InferRequest:
    return decode(msgspec.json.encode({"inputs": inputs, **more}), InferRequest)


@given(st.lists(st.text(), max_size=20))
def test_texts_come_out_as_they_went_in(texts: list[str]) -> None:
    predict = decode(msgspec.json.encode({"texts": texts}), PredictRequest)
    assert texts_of_predict(predict, ONE) == texts
    n = len(texts)
    flat = [tensor(texts, [n]), tensor(texts, [n, 1]), tensor([[text] for text in texts], [n, 1])]
    assert [texts_of_infer(infer(column), entry(*ONE)) for column in flat] == [texts] * 3


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20))
def test_pairs_come_out_as_they_went_in(pairs: list[tuple[str, str]]) -> None:
    predict = decode(msgspec.json.encode({"texts": pairs}), PredictRequest)
    assert texts_of_predict(predict, TWO) == pairs
    n = len(pairs)
    second, first = tensor([b for _, b in pairs], [n], "text_b"), tensor([a for a, _ in pairs], [n])
    assert texts_of_infer(infer(second, first), entry(*TWO)) == pairs


@pytest.mark.parametrize(
    ("texts", "fields", "message"),
    [
        ([["a", "b"]], ONE, "texts[0]: got a list of 2 strings, need a string, as the template takes; send"),
        (["a", ["b", "c"]], ONE, "texts[1]: got a list of 2 strings, need a string, as the template takes; send"),
        ([["a", "b"], "c"], TWO, "texts[1]: got a string, need a list of 2 strings, as the template takes; send"),
        ([""] * (MAX_TEXTS + 1), ONE, "body: got 1025 texts, need at most 1024; send several requests"),
    ],
)
def test_texts_that_do_not_fit_the_template(texts: list[Any], fields: list[str], message: str) -> None:
    request = decode(msgspec.json.encode({"texts": texts}), PredictRequest)
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        texts_of_predict(request, fields)


@pytest.mark.parametrize(
    ("inputs", "fields", "message"),
    [
        ([], ONE, "inputs: got 0 tensor(s), need ['text']; send each once"),
        ([tensor(["a"], [1], "x")], ONE, "inputs: got 1 tensor(s), need ['text']"),
        ([tensor(["a"], [1])] * 2, ONE, "inputs: got 2 tensor(s), need ['text']"),
        ([tensor(["a"], [1])], TWO, "inputs: got 1 tensor(s), need ['text', 'text_b']"),
        (
            [tensor(["a"], [1]), tensor([], [0], "text_b")],
            TWO,
            "inputs: got columns of [1, 0] texts, need equal numbers; add",
        ),
        ([tensor(["a"], [1], datatype="FP32")], ONE, "input 'text': got another datatype, need BYTES"),
        ([tensor(["a"], [2])], ONE, "input 'text': got shape [2], need [1] as its data has"),
        ([tensor(["a"], [1, 2])], ONE, "input 'text': got shape [1, 2], need [1]"),
        ([tensor(["a"], [])], ONE, "input 'text': got shape [], need [1]"),
        ([tensor(["a"], [-1])], ONE, "input 'text': got shape [-1], need [1]"),
        ([tensor([["a"]], [1])], ONE, "input 'text': got shape [1], need [1, 1]"),
        ([tensor([["a", "b"]], [2])], ONE, "input 'text': got data of mixed depth or length"),
        ([tensor([["a"], "b"], [2, 1])], ONE, "input 'text': got data of mixed depth or length"),
        ([tensor([""] * 1025, [1025])], ONE, "body: got 1025 texts, need at most 1024"),
    ],
)
def test_tensors_that_do_not_fit_the_model(inputs: list[Any], fields: list[str], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        texts_of_infer(infer(*inputs), entry(*fields))


@pytest.mark.parametrize("outputs", [["logits"], ["label", "label"]])
def test_outputs_are_known_and_asked_for_once(outputs: list[str]) -> None:
    request = infer(tensor(["a"], [1]), outputs=[{"name": name} for name in outputs])
    with pytest.raises(RequestError, match=r"^outputs: got an unknown or repeated name, need some of \['label', 'prob"):
        texts_of_infer(request, entry(*ONE))


FIT = ": got a field or value that does not fit, need the fields texts, task; send {"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: got nothing, need an object; send"),
        (b"{", "body: got text that is not JSON (its end is missing), need an object; send"),
        (b"{} x", "body" + FIT),
        (b'{"texts": []} x', "body: got text that is not JSON (trailing characters (byte 15)), need an object; send"),
        (b"[]", "body" + FIT),
        (b"{}", "body" + FIT),
        (b'{"texts": [], "labels": []}', "body" + FIT),
        (b'{"texts": 1}', "texts" + FIT),
        (b'{"texts": [null]}', "texts[0]" + FIT),
        (b'{"texts": [["a", 1]]}', "texts[0][1]" + FIT),
        (b'{"texts": [["a"]]}', "texts[0]" + FIT),
        (b'{"texts": [], "task": 1}', "task" + FIT),
        (
            b'{"texts": ["\\ud800 alone"]}',
            "body: got half of a surrogate pair, need Unicode; escape both halves or neither",
        ),
        (b'{"texts": ["\\ud800"]}', "body: got half of a surrogate pair, need Unicode; escape both halves or neither"),
        (
            b'{"texts": ["\\\\ud800", "\\x"]}',
            "body: got text that is not JSON (invalid escape character in string (byte",
        ),
        (b'{"texts": ["\xed\xa0\x80"]}', "body: got bytes that are not UTF-8, need JSON in UTF-8; send"),
        (b'{"texts": [' + b"[" * 100_000, "texts[0][0]" + FIT),
    ],
)
def test_a_body_that_cannot_be_decoded_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        decode(body, PredictRequest)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"labels": []}, "inputs[0]"),
        ({"shape": [1.5]}, "inputs[0].shape[0]"),
        ({"data": ["a", [3]]}, "inputs[0].data[1][0]"),
        ({"parameters": 1}, "inputs[0].parameters"),
    ],
)
def test_a_tensor_that_cannot_be_decoded_is_refused_with_its_place(change: dict[str, Any], place: str) -> None:
    body = msgspec.json.encode({"inputs": [tensor(["a"], [1]) | change]})
    message = (
        f"{place}: got a field or value that does not fit, need the fields inputs, id, parameters, outputs; send {{"
    )
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        decode(body, InferRequest)


@pytest.mark.parametrize(
    "body",
    [
        b'{"texts": [], "private": 1}',
        b'{"texts": [], "private ` - at `$": 1}',
        b'{"texts": [], "x` - at `$.private": 1}',
        b'{"texts": [], "x` - at `$.inputs[0].private": 1}',
        b'{"texts": ["private\\ud800"]}',
        b'{"texts": ["private\xff"]}',
        b'{"texts": ["private", 7]}',
        b'{"texts": ["private", ["private"]]}',
    ],
)
def test_messages_never_repeat_what_the_caller_wrote(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        texts_of_predict(decode(body, PredictRequest), ONE)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        infer(tensor(["private"], [1], "private")),
        infer(tensor(["private"], [2])),
        infer(tensor(["private"], [1], datatype="private")),
        infer(tensor([["private", "private"]], [1, 1])),
        infer(tensor(["private"], [1]), outputs=[{"name": "private"}]),
    ],
)
def test_messages_about_tensors_never_repeat_them(request_: InferRequest) -> None:
    with pytest.raises(RequestError) as caught:
        texts_of_infer(request_, entry(*ONE))
    assert "private" not in str(caught.value)


def test_answers_as_tensors() -> None:
    label = {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["no", "yes"]}
    probabilities = {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]}
    request = infer(tensor(["a", "b"], [2]), id="7", parameters={"any": [1]})
    head = {"model_name": "m"}
    assert infer_response(request, entry(*ONE), PREDICTIONS) == {
        **head,
        "id": "7",
        "outputs": [label, probabilities],
    }
    request = infer(tensor(["a", "b"], [2]), outputs=[{"name": "probabilities", "parameters": {"binary_data": False}}])
    assert infer_response(request, entry(*ONE), PREDICTIONS) == {**head, "outputs": [probabilities]}
    empty = infer_response(InferRequest(inputs=[InferInput("text", [0], "BYTES", [])]), entry(*ONE), [])
    assert [(o["shape"], o["data"]) for o in empty["outputs"]] == [([0], []), ([0, 2], [])]


def test_an_answer_without_a_label() -> None:
    """null in JSON; tensors know no null, so there it is empty."""
    unsure = [Prediction(label=None, probabilities={"yes": 0.5, "no": 0.5})]
    assert predict_response(unsure)["predictions"][0]["label"] is None
    response = infer_response(infer(tensor(["a"], [1])), entry(*ONE), unsure)
    assert response["outputs"][0]["data"] == [""]


def test_answers_by_name() -> None:
    assert predict_response(PREDICTIONS)["predictions"][0] == {
        "label": "no",
        "probabilities": {"yes": 0.25, "no": 0.75},
    }


def test_metadata_of_a_pair_model() -> None:
    metadata = model_metadata(entry(*TWO))
    assert [i["name"] for i in metadata["inputs"]] == TWO
    assert metadata["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
    assert metadata["platform"] == "onnxruntime_onnx"
