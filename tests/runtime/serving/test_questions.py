"""Tensors and parameters in, rows and options out; and what does not fit is one sentence without what was sent."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptexport.runtime.engine.text_encoder import TokenIds
from ptexport.runtime.errors import LargeRequestError, PtexportError, RequestError
from ptexport.runtime.serving.questions import (
    MAX_CHARACTERS,
    MAX_TEXTS,
    Options,
    check_outputs,
    check_texts,
    options_of,
    rows_of,
)
from ptexport.runtime.serving.tensors import InferRequest, OutputRequest, Tensor

ONE, TWO = ["text"], ["text", "text_b"]


def column(data: list[Any], shape: list[int] | None = None, name: str = "text", datatype: str = "BYTES") -> Tensor:
    return Tensor(name, datatype, [len(data)] if shape is None else shape, data)


def ids(name: str, data: list[Any], shape: list[int], datatype: str = "INT64") -> Tensor:
    return Tensor(name, datatype, shape, data)


def rows(*inputs: Tensor, fields: list[str] = ONE) -> list[Any]:
    return list(rows_of(InferRequest(inputs=[*inputs]), fields))


@given(st.lists(st.text(), max_size=20))
def test_texts_come_out_as_they_went_in(texts: list[str]) -> None:
    n = len(texts)
    assert rows(column(texts)) == rows(column(texts, [n, 1])) == rows(column(texts, name="IN0")) == texts
    assert rows(column(["alone"], [])) == ["alone"]
    pairs = [(text, text[::-1]) for text in texts]
    second, first = column([b for _, b in pairs], name="text_b"), column([a for a, _ in pairs])
    assert rows(second, first, fields=TWO) == pairs


@pytest.mark.parametrize("datatype", ["INT64", "INT32"])
def test_ids_with_their_mask_and_types(datatype: str) -> None:
    """Padding on either side and in the middle: the graph counts positions over the mask."""
    given_ids = ids("input_ids", [7, 8, 9, 0, 5, 0, 0, 6, 3], [3, 3], datatype)
    mask = ids("attention_mask", [1, 1, 1, 0, 1, 0, 0, 1, 1], [3, 3], datatype)
    types = ids("token_type_ids", [0, 0, 1, 0, 0, 0, 0, 1, 1], [3, 3], datatype)
    whole = [TokenIds([7, 8, 9], [0, 0, 0]), TokenIds([0, 5, 0], [0, 0, 0]), TokenIds([0, 6, 3], [0, 0, 0])]
    assert rows(given_ids) == whole
    masked = [TokenIds([7, 8, 9], [0, 0, 1]), TokenIds([5], [0]), TokenIds([6, 3], [1, 1])]
    assert rows(types, mask, given_ids, fields=TWO) == masked


@pytest.mark.parametrize("shape", [[2], [1, 2], [-1], [2**63], [2**64], [1, 1, 1], [0], [-1, -1], [1, -1]])
def test_a_shape_that_is_not_the_data_s(shape: list[int]) -> None:
    with pytest.raises(RequestError, match="got a shape that does not match its 1 strings"):
        rows(column(["a"], shape))


@pytest.mark.parametrize(
    "shape", [[], [4], [2, 3], [-2, -2], [4, 0], [2**62, 4], [2**63, 2**63], [1, 2, 2], [-1, 4], [4, 1, 1]]
)
def test_a_shape_that_is_not_the_ids(shape: list[int]) -> None:
    with pytest.raises(RequestError, match="got a shape that does not match the data"):
        rows(ids("input_ids", [1, 2, 3, 4], shape))


def test_rows_without_ids_are_not_lost() -> None:
    """[3, 0] has as many elements as no data: three rows, none of which has an id; the task refuses them."""
    assert rows(ids("input_ids", [], [3, 0])) == [TokenIds([], [])] * 3
    assert rows(ids("input_ids", [], [0, 0])) == rows(ids("input_ids", [], [0, 3])) == []
    with pytest.raises(LargeRequestError, match="got 1000000000000 texts, need at most 1024"):
        rows(ids("input_ids", [], [10**12, 0]))


@pytest.mark.parametrize(
    ("inputs", "fields", "message"),
    [
        ([], ONE, "inputs: got 0 tensor(s), need ['text'], or input_ids and attention_mask"),
        ([column(["a"])] * 2, ONE, "inputs: got 2 tensor(s), need ['text']"),
        ([column(["a"])], TWO, "inputs: got 1 tensor(s), need ['text', 'text_b']"),
        ([column(["a"]), column(["a"])], TWO, "inputs: got 2 tensor(s), need ['text', 'text_b']"),
        ([column(["a"]), column([], name="text_b")], TWO, "inputs: got columns of [1, 0] texts, need equal numbers"),
        ([column(["a"], datatype="FP32")], ONE, "inputs[0]: got another datatype, need BYTES"),
        ([column(["a", 1])], ONE, "inputs[0]: got data that is not text"),
        ([column([True])], ONE, "inputs[0]: got data that is not text"),
        ([ids("attention_mask", [1], [1, 1])], ONE, "inputs: got 1 tensor(s), need ['text']"),
        ([ids("inputs_embeds", [1], [1, 1])] * 2, ONE, "inputs: got 2 tensor(s), need ['text']"),
        ([ids("input_ids", [1], [1, 1]), column(["a"])], ONE, "inputs: got 2 tensor(s), need ['text']"),
        ([ids("input_ids", [1], [1, 1])] * 2, ONE, "inputs: got 2 tensor(s), need ['text']"),
        ([ids("input_ids", [1], [1, 1], "FP32")], ONE, "input 'input_ids': got another datatype, need INT64"),
        ([ids("input_ids", ["1"], [1, 1])], ONE, "input 'input_ids': got data that is not whole numbers"),
        ([ids("input_ids", [True], [1, 1])], ONE, "input 'input_ids': got data that is not whole numbers"),
        ([ids("input_ids", [1.0], [1, 1])], ONE, "input 'input_ids': got data that is not whole numbers"),
        (
            [ids("input_ids", [1], [1, 1]), ids("attention_mask", [2], [1, 1])],
            ONE,
            "input 'attention_mask': got another value, need 0 or 1",
        ),
        (
            [ids("input_ids", [1, 2], [1, 2]), ids("attention_mask", [1, 1], [2, 1])],
            ONE,
            "input 'attention_mask': got a shape that does not match",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_model(inputs: list[Tensor], fields: list[str], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        rows(*inputs, fields=fields)


def test_there_are_only_so_many_texts_and_characters() -> None:
    check_texts(["x" * MAX_CHARACTERS, *[""] * (MAX_TEXTS - 1)])
    with pytest.raises(LargeRequestError, match="body: got 1025 texts, need at most 1024; send several requests"):
        check_texts([""] * (MAX_TEXTS + 1))
    for text in ("x" * (MAX_CHARACTERS + 1), ("", "x" * (MAX_CHARACTERS + 1))):
        with pytest.raises(LargeRequestError, match="text 1: got more than 100,000 characters, need fewer"):
            check_texts(["", text])
    with pytest.raises(LargeRequestError, match="got 1025 texts"):
        rows(column([""] * (MAX_TEXTS + 1)))
    with pytest.raises(LargeRequestError, match="got 1025 texts"):
        rows(ids("input_ids", [1] * (MAX_TEXTS + 1), [MAX_TEXTS + 1, 1]))


def test_parameters_that_say_how_to_predict() -> None:
    assert options_of({}) == Options(top_k=None, raw_scores=False, truncate=True, task=None, timeout_s=None)
    given = {"top_k": 3, "raw_scores": True, "truncate": False, "task": "tone", "timeout": 2_500_000}
    assert options_of(given) == Options(top_k=3, raw_scores=True, truncate=False, task="tone", timeout_s=2.5)
    others = {"sequence_id": 0, "sequence_start": False, "priority": 0, "content_type": "str", "headers": {}}
    assert options_of(others | {"binary_data_output": True}) == Options()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": 0}, "parameters.top_k: got another value, need a whole number of labels from 1"),
        ({"top_k": True}, "parameters.top_k: got another value"),
        ({"top_k": "1"}, "parameters.top_k: got another value"),
        ({"top_k": 1.0}, "parameters.top_k: got another value"),
        ({"top_k": 2**63}, "parameters.top_k: got another value"),
        ({"timeout": -1}, "parameters.timeout: got another value, need a whole number of microseconds"),
        ({"timeout": None}, "parameters.timeout: got another value"),
        ({"raw_scores": 1}, "parameters.raw_scores: got another type, need true or false"),
        ({"truncate": "false"}, "parameters.truncate: got another type, need true or false"),
        ({"task": ["private"]}, "parameters.task: got another type, need a name"),
        ({"sequence_id": 7}, "parameters.sequence_id: got a value, need none, since requests are independent"),
        ({"sequence_start": True}, "parameters.sequence_start: got a value, need none"),
        ({"priority": 1}, "parameters.priority: got a value, need none"),
        ({"private": 1}, "parameters: got an unknown name, need top_k, raw_scores"),
        ({"temperature": None}, "parameters: got an unknown name"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)) as caught:
        options_of(parameters)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("names", [["private"], ["a", "a"], ["a", "b", "c"], ["a"] * 100])
def test_outputs_are_known_and_asked_for_once(names: list[str]) -> None:
    check_outputs([OutputRequest(name=name) for name in ("b", "a")], ["a", "b"])
    with pytest.raises(RequestError, match=r"^outputs: got .*, need some of \['a', 'b'\]; correct the list$") as caught:
        check_outputs([OutputRequest(name=name) for name in names], ["a", "b"])
    assert "private" not in str(caught.value)


VALUES = st.none() | st.booleans() | st.integers() | st.integers(-2, 3) | st.floats() | st.text(max_size=3)
TENSORS = st.builds(
    Tensor,
    st.sampled_from(["text", "text_b", "input_ids", "attention_mask", "token_type_ids", "x"]),
    st.sampled_from(["BYTES", "INT64", "INT32", "BOOL", "FP32", ""]),
    st.lists(st.integers(-1, 4) | st.integers(), max_size=3),
    st.lists(st.text(max_size=3), max_size=4) | st.lists(st.integers(-1, 2), max_size=4) | st.lists(VALUES, max_size=4),
)


@settings(max_examples=250)
@given(st.lists(TENSORS, max_size=3), st.dictionaries(st.sampled_from(["top_k", "timeout", "task", "x"]), VALUES))
def test_any_tensors_are_rows_or_a_sentence(inputs: list[Tensor], parameters: dict[str, Any]) -> None:
    for fields in (ONE, TWO):
        try:
            made = rows(*inputs, fields=fields)
        except PtexportError:
            continue
        assert len(made) == (inputs[0].shape or [1])[0]
    with contextlib.suppress(PtexportError):
        options_of(parameters)
