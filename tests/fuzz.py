"""Damage to files that are right, as hypothesis draws it: to bytes, to protobuf messages, to JSON.

`settings_of` says how much: little, and the same each time, in the suite; more, and other each time, in `make soak`.
"""

import copy
import hashlib
import json
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ptexport.runtime.bundle.protobuf import BYTES, VARINT, delimited, fields, varint

FIELDS = (1, 2, 4, 5, 6, 7, 9, 13, 14, 15, 20, 25)
"""Of ONNX's messages: those that hold others, values, and what is refused."""
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**69)
CONTENTS = (
    b"",
    b"",
    b"",
    b"evil",
    b"com.microsoft",
    b"EPContext",
    b"MatMulNBits",
    b"/etc/passwd",
    b"../x",
    b"\xff\xfe",
    b"0" * 8,
)
VALUES = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "../x",
    "\ud800",
    "a\nb",
    [],
    {},
    [{}],
)
DEEP = "a value nested 5,000 deep"


def settings_of(examples: int, *, soak: bool = False, shrink: bool = True) -> settings:
    """An example that takes 20 s fails; what fails is made as small as can be, unless it has to fail."""
    return settings(
        max_examples=examples,
        derandomize=not soak,
        database=None,
        deadline=20_000,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )


def small_model() -> onnx.ModelProto:
    """`logits = input_ids + 1`, with the 1 inside, in a file of 8 bytes, and in a subgraph."""
    inside = helper.make_tensor("inside", TensorProto.FLOAT, [2], np.ones(2, "<f4").tobytes(), raw=True)
    outside = helper.make_tensor("outside", TensorProto.FLOAT, [2], np.ones(2, "<f4").tobytes(), raw=True)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": "8"}.items():
        outside.external_data.add(key=key, value=value)
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("", TensorProto.FLOAT, [2], [1, 2]))
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])])
    nodes = [
        helper.make_node("Add", ["x", "inside"], ["y"]),
        helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch),
    ]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")}
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"]], [inside, outside])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes flipped, cut out, put in, copied from elsewhere, or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, len(data))), draw(st.integers(1, 12))
        how = draw(st.sampled_from(("flip", "cut out", "put in", "copy", "cut off")))
        if how == "flip":
            data[at : at + 1] = bytes(byte ^ draw(st.integers(1, 255)) for byte in data[at : at + 1])
        elif how == "cut out":
            del data[at : at + n]
        elif how == "put in":
            data[at:at] = draw(st.binary(min_size=n, max_size=n))
        elif how == "copy":
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start : start + n * n]
        else:
            del data[at:]
    return bytes(data)


@st.composite
def damaged_message(draw: st.DrawFn, whole: bytes) -> bytes:
    """A protobuf message with fields doubled, dropped, renumbered, of other types or contents, at any depth."""
    for _ in range(draw(st.integers(1, 3))):
        whole = draw(_damaged_field(whole))
    return whole


@st.composite
def _damaged_field(draw: st.DrawFn, whole: bytes) -> bytes:
    try:
        parts = list(fields(whole, 0, len(whole)))
    except ValueError:
        return draw(damaged(whole))
    new = _written(draw(st.sampled_from(FIELDS)), draw(st.sampled_from(NUMBERS + CONTENTS)))
    if not parts:
        return new
    field = draw(st.sampled_from(parts))
    start, end = field.start, field.end
    how = draw(st.sampled_from(("inside", "inside", "inside", "twice", "drop", "renumber", "replace", "add", "add")))
    if how == "inside" and field.wire_type == BYTES:
        return whole[:start] + delimited(field.number, draw(_damaged_field(whole[field.content : end]))) + whole[end:]
    if how == "twice":
        return whole + whole[start:end]
    if how == "drop":
        return whole[:start] + whole[end:]
    if how == "renumber" and field.wire_type == BYTES:
        number = draw(st.sampled_from((*FIELDS, 0, 99)))
        return whole[:start] + delimited(number, whole[field.content : end]) + whole[end:]
    if how == "add":
        return whole[:start] + new + whole[start:]
    return whole[:start] + _written(field.number, draw(st.sampled_from(NUMBERS + CONTENTS))) + whole[end:]


def _written(number: int, content: int | bytes) -> bytes:
    if isinstance(content, bytes):
        return delimited(number, content)
    return varint(number << 3 | VARINT) + varint(content)


@st.composite
def damaged_json(draw: st.DrawFn, record: Any) -> Any:
    """A JSON value with values replaced, doubled, dropped or renamed, at any depth."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 2))):
        place = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
                place = place[key]
                continue
            value = place.pop(key)
            how = draw(st.sampled_from(("replace", "replace", "deep", "drop", "rename")))
            new = {"replace": copy.deepcopy(draw(st.sampled_from(VALUES))), "deep": DEEP}.get(how, value)
            if how != "drop" and isinstance(place, dict):
                place[f"{key}x" if how == "rename" else key] = new
            elif how != "drop":
                place.insert(key, new)
            break
    return record


def to_text(record: Any) -> str:
    """Write JSON as Python does, which writes NaN and halves of surrogate pairs, and what Python itself cannot."""
    return json.dumps(record).replace(json.dumps(DEEP), "[" * 5_000 + "]" * 5_000)


def digest_of(record: dict[str, Any]) -> str:
    """The digest of a manifest, right or not."""
    content = {key: value for key, value in record.items() if key != "digest"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
