"""Elements of binary tensors, written and read."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptexport.runtime.errors import LargeRequestError, RequestError
from ptexport.runtime.serving.tensors import Tensor, binary, elements, text_of

ELEMENTS = {
    "BYTES": st.text(),
    "BOOL": st.booleans(),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP32": st.floats(width=32, allow_nan=False),
}


@given(st.data(), st.sampled_from(sorted(ELEMENTS)))
def test_elements_come_out_as_they_went_in(data: st.DataObject, datatype: str) -> None:
    values = data.draw(st.lists(ELEMENTS[datatype], max_size=20))
    raw = binary(Tensor("x", datatype, [len(values)], values))
    assert elements("x", datatype, raw) == values
    assert elements("x", datatype, memoryview(raw)) == values


def test_bytes_are_those_that_triton_documents() -> None:
    assert binary(Tensor("x", "BYTES", [2], ["ab", "ж"])) == b"\x02\0\0\0ab\x02\0\0\0\xd0\xb6"
    assert binary(Tensor("x", "FP32", [2], [1.5, -2])) == np.array([1.5, -2], "<f4").tobytes()
    assert binary(Tensor("x", "INT64", [1], [-2])) == struct.pack("<q", -2)
    assert binary(Tensor("x", "BOOL", [2], [True, False])) == b"\1\0"


@pytest.mark.parametrize(
    ("datatype", "raw", "message"),
    [
        ("BYTES", b"\1\0\0", "x: got a string without its length"),
        ("BYTES", b"\1\0\0\0a\0", "x: got a string without its length"),
        ("BYTES", b"\2\0\0\0a", "x: got a length past the end"),
        ("BYTES", b"\xff\xff\xff\xff", "x: got a length past the end"),
        ("BYTES", b"\1\0\0\0\xff", "x: got bytes that are not UTF-8"),
        ("INT64", b"1234567", "x: got 7 bytes, need a multiple of 8"),
        ("INT32", b"12345", "x: got 5 bytes, need a multiple of 4"),
        ("FP16", b"", "x: got another datatype"),
        ("bytes", b"", "x: got another datatype"),
    ],
)
def test_bytes_that_hold_no_elements(datatype: str, raw: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        elements("x", datatype, raw)


@given(st.binary(max_size=64), st.sampled_from([*ELEMENTS, "FP16", "UINT8", ""]))
def test_any_bytes_are_elements_or_a_sentence(raw: bytes, datatype: str) -> None:
    try:
        values: list[Any] = elements("x", datatype, raw)
    except RequestError:
        return
    if datatype != "FP32":  # a NaN has several forms
        again = binary(Tensor("x", datatype, [len(values)], values))
        assert again == raw or datatype == "BOOL", "what can be read is what would be written"


def test_text_is_utf_8() -> None:
    assert text_of("x", "ж".encode()) == "ж"
    with pytest.raises(RequestError, match="x: got bytes that are not UTF-8, need text"):
        text_of("x", b"\xed\xa0\x80")


def test_too_many_elements_are_refused_before_they_are_read() -> None:
    with pytest.raises(LargeRequestError, match="got more than 1024 strings"):
        elements("inputs[0]", "BYTES", b"\0" * 4 * 500_000)
    with pytest.raises(LargeRequestError, match="got 131,073 elements, need at most 131,072"):
        elements("inputs[0]", "INT64", b"\0" * 8 * 131_073)
