"""Bodies in, values out, and back, without a server."""

import contextlib
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.errors import PtexportError, RequestError
from ptexport.runtime.server.bodies import (
    BinaryOutputs,
    decode_infer,
    decode_predict,
    encode_infer,
    encode_predictions,
)
from ptexport.runtime.serving.questions import Options
from ptexport.runtime.serving.tensors import InferRequest, InferResponse, OutputRequest, Tensor, binary

PREDICTIONS = [
    Prediction(label="no", probabilities={"yes": 0.25, "no": 0.75}),
    Prediction(label=None, probabilities={"yes": 0.5, "no": 0.5}, truncated=True, logits={"yes": 0.0, "no": 0.0}),
]


def tensor(data: Any, shape: list[int], name: str = "text", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": "BYTES", "data": data, **more}


def predict(body: bytes, *fields: str) -> Any:
    return decode_predict(body, lambda _: fields or ("text",))


def infer(*inputs: dict[str, Any], **more: Any) -> InferRequest:
    return decode_infer(msgspec.json.encode({"inputs": inputs, **more}), None)[0]


@given(st.lists(st.text(), max_size=20))
def test_texts_come_out_as_they_went_in(texts: list[str]) -> None:
    assert predict(msgspec.json.encode({"texts": texts})) == (texts, None, Options())
    pairs = [(text, text[::-1]) for text in texts]
    assert predict(msgspec.json.encode({"texts": pairs}), "text", "text_b")[0] == pairs
    n = len(texts)
    for data, shape in ((texts, [n]), (texts, [n, 1]), ([[text] for text in texts], [n, 1])):
        assert infer(tensor(data, shape)).inputs == [Tensor("text", "BYTES", shape, texts)]


def test_options_of_predict() -> None:
    body = b'{"texts": [], "task": "tone", "top_k": 2, "raw_scores": true, "truncate": false}'
    assert predict(body) == ([], "tone", Options(top_k=2, raw_scores=True, truncate=False))
    with pytest.raises(RequestError, match=r"top_k: got another value"):
        predict(b'{"texts": [], "top_k": 0}')


INTEGERS = st.integers(-(2**63), 2**63 - 1)
COLUMNS = st.lists(
    st.tuples(st.just("BYTES"), st.lists(st.text(), max_size=4)) | st.tuples(st.just("INT64"), st.lists(INTEGERS)),
    max_size=3,
)


@given(COLUMNS, st.lists(st.booleans(), min_size=3, max_size=3))
def test_binary_tensors_come_out_as_they_went_in(columns: list[tuple[str, list[Any]]], packed: list[bool]) -> None:
    """Any mixture of tensors in the JSON and behind it."""
    tensors = [Tensor(str(n), kind, [len(data)], data) for n, (kind, data) in enumerate(columns)]
    head, rest = [], b""
    for one, behind in zip(tensors, packed, strict=False):
        laid_out: dict[str, Any] = {"name": one.name, "shape": one.shape, "datatype": one.datatype}
        if behind:
            laid_out["parameters"] = {"binary_data_size": len(binary(one))}
            rest += binary(one)
        else:
            laid_out["data"] = one.data
        head.append(laid_out)
    json_part = msgspec.json.encode({"inputs": head})
    assert decode_infer(json_part + rest, str(len(json_part)))[0].inputs == tensors
    with pytest.raises(RequestError, match="got 1 bytes past its tensors, need none"):
        decode_infer(json_part + rest + b"x", str(len(json_part)))


def test_a_raw_binary_request_is_one_text() -> None:
    request, wanted = decode_infer("ж {".encode(), "0")
    assert request.inputs == [Tensor("text", "BYTES", [1], ["ж {"])]
    assert "label" in wanted
    with pytest.raises(RequestError, match="body: got bytes that are not UTF-8, need text"):
        decode_infer(b"\xff", "0")


@pytest.mark.parametrize("header", ["", "-1", "+3", "1.0", "0x1", "private", "9" * 30, "100", " 3", "\u0663"])
def test_a_header_length_is_a_length(header: str) -> None:
    with pytest.raises(RequestError, match=r"^header inference-header-content-length: got another value, need") as got:
        decode_infer(b'{"inputs": []}', header)
    assert "private" not in str(got.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parameters": {"binary_data_size": 6}},
            "inputs[0]: got a binary_data_size past the end of the body, need at",
        ),
        ({"parameters": {"binary_data_size": -1}}, "inputs[0]: got no data, need it, or parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": True}}, "inputs[0]: got no data, need it"),
        ({"parameters": {"binary_data_size": "5"}}, "inputs[0]: got no data, need it"),
        ({"parameters": {"binary_data_size": 2**70}}, "inputs[0]: got a binary_data_size past the end"),
        ({}, "inputs[0]: got no data, need it"),
        ({"parameters": {"binary_data_size": 4}}, "inputs[0]: got a length past the end"),
        ({"data": [], "parameters": {"binary_data_size": 5}}, "inputs[0]: got data and binary_data_size, need one"),
        ({"data": ["a"]}, "body: got 5 bytes past its tensors, need none"),
        ({"datatype": "FP16", "parameters": {"binary_data_size": 5}}, "inputs[0]: got another datatype, need BYTES"),
    ],
)
def test_binary_tensors_that_do_not_add_up(changes: dict[str, Any], message: str) -> None:
    head = msgspec.json.encode({"inputs": [{"name": "private", "shape": [1], "datatype": "BYTES", **changes}]})
    with pytest.raises(RequestError, match="^" + re.escape(message)) as caught:
        decode_infer(head + b"\1\0\0\0a", str(len(head)))
    assert "private" not in str(caught.value)


def test_which_outputs_are_binary() -> None:
    def wanted(**more: Any) -> list[str]:
        _, which = decode_infer(msgspec.json.encode({"inputs": [tensor([], [0])], **more}), None)
        return [name for name in ("label", "logits") if name in which]

    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "logits"}]
    assert wanted() == []
    assert wanted(parameters={"binary_data_output": True}) == ["label", "logits"]
    assert wanted(outputs=outputs) == ["label"]
    assert wanted(outputs=outputs, parameters={"binary_data_output": True}) == ["label", "logits"], "its default"
    assert wanted(outputs=[{"name": "label", "parameters": {"binary_data": False}}]) == []
    request = infer(tensor([], [0]), outputs=[{"name": "logits", "parameters": {"classification": 2}}])
    assert request.outputs == [OutputRequest(name="logits", classification=2)]
    for bad in (-1, True, "2", None):
        with pytest.raises(RequestError, match=r"outputs\[0\]: got another classification"):
            infer(tensor([], [0]), outputs=[{"name": "logits", "parameters": {"classification": bad}}])


def test_answers_in_json_and_binary() -> None:
    outputs = [Tensor("label", "BYTES", [2], ["ж", ""]), Tensor("scores", "FP32", [2, 1], [0.5, 0.25])]
    response = InferResponse(model="m", version="v", id="7", outputs=outputs)
    body, length = encode_infer(response, BinaryOutputs())
    assert length is None
    laid_out = [{"name": t.name, "shape": t.shape, "datatype": t.datatype, "data": t.data} for t in outputs]
    assert msgspec.json.decode(body) == {"model_name": "m", "model_version": "v", "id": "7", "outputs": laid_out}
    body, length = encode_infer(response, BinaryOutputs({"scores": True}))
    head = msgspec.json.decode(body[:length])
    assert "data" not in head["outputs"][1]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert body[length:] == binary(outputs[1])


def test_answers_by_name() -> None:
    one, other = msgspec.json.decode(encode_predictions(PREDICTIONS))["predictions"]
    assert one == {"label": "no", "probabilities": {"yes": 0.25, "no": 0.75}, "truncated": False}
    assert (other["label"], other["truncated"], other["logits"]) == (None, True, {"yes": 0.0, "no": 0.0})
    (by_task,) = msgspec.json.decode(encode_predictions([{"tone": PREDICTIONS[0]}]))["predictions"]
    assert by_task == {"tone": one}


FIELDS = "need texts, task, top_k, raw_scores, truncate"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: got nothing, need an object; send"),
        (b"{", "body: got text that is not JSON (its end is missing), need an object; send"),
        (b'{"texts": []} x', "body: got text that is not JSON (trailing characters (byte 15)), need an object; send"),
        (b"[]", "body: got a list, need an object; send"),
        (b"{}", "body: got no 'texts', need it; send"),
        (b'{"texts": [], "labels": []}', f"body: got an unknown field, {FIELDS}; send"),
        (b'{"texts": 1}', "texts: got a whole number, need a list; send"),
        (b'{"texts": [null]}', "texts[0]: got null, need "),
        (b'{"texts": [["a", 1]]}', "texts[0][1]: got a whole number, need a string; correct it"),
        (b'{"texts": [["a"]]}', "texts[0]: got "),
        (b'{"texts": [], "task": 1}', "task: got a whole number, need a string or null; correct it"),
        (b'{"texts": [], "truncate": 1}', "truncate: got a whole number, need true or false; correct it"),
        (b'{"texts": ["\\ud800 alone"]}', "body: got half of a surrogate pair, need Unicode; escape both halves or n"),
        (b'{"texts": ["\\\\ud800", "\\x"]}', "body: got text that is not JSON (invalid escape character in string (by"),
        (b'{"texts": ["\xed\xa0\x80"]}', "body: got bytes that are not UTF-8, need JSON in UTF-8; send"),
        (b'{"texts": [' + b"[" * 100_000, "texts[0][0]: got a list, need a string"),
        (b'{"texts": ["a", ["b", "c"]]}', "texts[1]: got a list of 2 strings, need a string; send"),
    ],
)
def test_a_body_that_cannot_be_decoded_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        predict(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "inputs[0]: got an unknown field, need none"),
        ({"shape": [1.5]}, "inputs[0].shape[0]: got "),
        ({"data": [["a"], "b"]}, "inputs[0]: got data of mixed depth or length, need equal rows"),
        ({"data": [["a"], ["b", "c"]]}, "inputs[0]: got data of mixed depth or length"),
        ({"data": [1.5]}, "inputs[0].data[0]: got "),
        ({"data": [[[["a"]]]]}, "inputs[0].data[0][0]: got a list, need "),
        ({"parameters": 1}, "inputs[0].parameters: got a whole number, need an object"),
    ],
)
def test_a_tensor_that_cannot_be_decoded_is_refused_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        infer(tensor(["a"], [1]) | change)


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
        b'{"texts": ["private", ["private", "private"]]}',
        b'{"texts": [], "task": ["private"]}',
    ],
)
def test_messages_never_repeat_what_the_caller_wrote(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        predict(body)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor([["private", "private"], []], [1, 1], "private")],
        [tensor("private", [1])],
        [tensor(["private"], [1], private="private")],
        [tensor(["private"], [1], parameters={"private": "private", "binary_data_size": 1})],
        {"private": "private"},
    ],
)
def test_messages_about_tensors_never_repeat_them(inputs: Any) -> None:
    with pytest.raises(RequestError) as caught:
        decode_infer(msgspec.json.encode({"inputs": inputs}), None)
    assert "private" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=8,
)
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=3) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["BYTES", "INT64", "BOOL", "FP32"]) | JSON,
        "data": st.lists(st.text(max_size=2) | JSON, max_size=3) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-2, 20) | JSON}),
    },
)


@settings(max_examples=250)
@given(st.lists(INPUT, max_size=2) | JSON, JSON, st.binary(max_size=20), st.none() | st.text("0123456789", max_size=3))
def test_any_body_is_a_request_or_a_sentence(inputs: Any, other: Any, rest: bytes, length: str | None) -> None:
    head = msgspec.json.encode({"inputs": inputs})
    lengths = (length, str(len(head)))
    bodies = (head + rest, msgspec.json.encode({"inputs": [], "outputs": other, "parameters": {"x": other}}), rest)
    for body in (*bodies, msgspec.json.encode(other), msgspec.json.encode({"texts": other, "task": other})):
        for decode in (predict, lambda b: decode_infer(b, lengths[0]), lambda b: decode_infer(b, lengths[1])):
            with contextlib.suppress(PtexportError):
                decode(body)
