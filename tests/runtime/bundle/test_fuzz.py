"""The readers of manifest.json and model.onnx on damaged files: a BundleError, or a value that is what it seems.

Each with a control: with one check taken out, the same draws find a file that it is needed for.
"""

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from fuzz import damaged, damaged_json, damaged_message, digest_of, settings_of, small_model, to_text
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from ptexport.runtime.bundle import manifest_json, model_check
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_check import check_model
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.bundle.protobuf import delimited, varint
from ptexport.runtime.errors import BundleError

FORMAT_1 = Path(__file__).parents[2] / "golden" / "format-1"


def fuzz(strategy: st.SearchStrategy[bytes], check: Callable[[bytes], None], how: settings) -> None:
    how(given(strategy)(check))()


def check_manifest(data: bytes) -> None:
    """A manifest that is accepted can be written, and read again, as the same; a refusal is one sentence."""
    refusal = ""
    try:
        manifest = read_manifest(data, "m")
    except BundleError as e:
        refusal = str(e)
    assert len(refusal) < 1000
    assert "\n" not in refusal
    if not refusal:
        again = read_manifest(manifest.to_json(), "m")
        assert msgspec.structs.replace(again, digest="") == msgspec.structs.replace(manifest, digest="")


def sealed(record: Any) -> bytes:
    """With a digest that is right, so that all behind it is reached."""
    return to_text({**record, "digest": digest_of(record)}).encode()


def fuzz_manifests(how: settings) -> None:
    """Damage manifests of format 1, with one task and with several, and the same in format 2."""
    for name in ("reviews", "both"):
        old = (FORMAT_1 / name / "manifest.json").read_bytes()
        manifest = read_manifest(old, "m")
        for data in (old, manifest.to_json()):
            record = json.loads(data)
            assert read_manifest(sealed(record), "m").name == manifest.name
            fuzz(damaged_json(record).map(sealed), check_manifest, how)
            fuzz(damaged(data), check_manifest, how)


def test_damaged_manifests_are_refused_or_read() -> None:
    fuzz_manifests(settings_of(250))


def test_control_numbers_that_are_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_json, "_finite", float)
    monkeypatch.setattr(manifest_json, "_no_number", float)
    monkeypatch.setattr("fuzz.VALUES", (float("nan"),))
    with pytest.raises(AssertionError):
        fuzz_manifests(settings_of(400, shrink=False))


def check_onnx(data: bytes) -> None:
    """What is taken holds, as protobuf's own library reads it, nothing that is refused; and its arrays are onnx's."""
    files = {"model.onnx.data": 8}
    with contextlib.suppress(BundleError):
        OnnxFile.parse(data, "m")
    refusal = ""
    try:
        check_model(data, "m", files)
        file = OnnxFile.parse(data, "m")
    except BundleError as e:
        refusal = str(e)
    assert len(refusal) < 1000
    if refusal:
        return
    try:
        model = onnx.load_from_string(data)
    except DecodeError:  # it reads shapes and texts for people too; ONNX Runtime refuses those
        return
    assert not model.functions
    assert not model.training_info
    assert {opset.domain for opset in model.opset_import} <= set(model_check.OPERATORS)
    check_graph(model.graph, files)
    of = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(array, numpy_helper.to_array(of[name]))
    assert len(of) == len(model.graph.initializer)


def check_graph(graph: onnx.GraphProto, files: dict[str, int]) -> None:
    for node in graph.node:
        known = model_check.OPERATORS[node.domain]
        assert known is None or node.op_type in known
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                check_graph(inner, files)
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                check_tensor(tensor, files)
    for tensor in graph.initializer:
        check_tensor(tensor, files)
    assert not graph.sparse_initializer


def check_tensor(tensor: onnx.TensorProto, files: dict[str, int]) -> None:
    values = ("raw_data", "float_data", "int32_data", "int64_data", "string_data", "double_data", "uint64_data")
    present = [name for name in (*values, "external_data") if len(getattr(tensor, name))]
    assert len(present) <= 1, present
    assert (tensor.data_location == onnx.TensorProto.EXTERNAL) == (present == ["external_data"])
    if present == ["external_data"]:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert sorted(place) == ["length", "location", "offset"]
        assert len(tensor.external_data) == 3
        assert place["location"] in files
        assert 0 <= int(place["offset"]) + int(place["length"]) <= files[place["location"]]


def fuzz_onnx(how: settings) -> None:
    model = small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("inside", 1, [2]))  # an array of the task's
    whole = model.SerializeToString()
    check_model(whole, "m", {"model.onnx.data": 8})
    assert list(OnnxFile.parse(whole, "m").arrays) == ["inside"]
    fuzz(damaged_message(whole), check_onnx, how)
    fuzz(damaged(whole), check_onnx, how)


def test_model_files() -> None:
    fuzz_onnx(settings_of(600))


@pytest.mark.parametrize("check", ["a field", "a place", "an operator"])
def test_control_a_check_is_missing(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if check == "a field":
        monkeypatch.setitem(model_check._KNOWN["Model"], 25, model_check._TEXTS)
    elif check == "a place":
        monkeypatch.setattr(model_check._Check, "_check_place", lambda *_: 8)
    else:
        monkeypatch.setattr(model_check._Check, "_check_operator", lambda *_: None)
    with pytest.raises(AssertionError):
        fuzz_onnx(settings_of(1500, shrink=False))


GREEDY = {
    "fields": delimited(7, delimited(1, b"\x0a\x00") * 20_000),
    "dimensions": delimited(7, delimited(5, (varint(1 << 3) + b"\xff" * 9 + b"\x01") * 10_000)),
    "dimensions in one field": delimited(7, delimited(5, delimited(1, (b"\xff" * 9 + b"\x01") * 10_000))),
    "names": delimited(7, b"".join(delimited(5, delimited(8, b"%d" % n) + b"\x08\x00\x10\x01") for n in range(8_000))),
    "depth": b"",
}


@pytest.mark.parametrize("what", GREEDY)
def test_time_and_memory_grow_with_the_file_alone(what: str) -> None:
    data = GREEDY[what]
    if what == "depth":
        for _ in range(2000):
            data = delimited(1, delimited(5, delimited(6, data)))
        data = delimited(7, data)
    tracemalloc.start()
    began = time.process_time()
    for read in (lambda: check_model(data, "m", {}), lambda: OnnxFile.parse(data, "m")):
        with contextlib.suppress(BundleError):
            read()
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 200 * len(data) + 1e6


@pytest.mark.soak
def test_much_more() -> None:
    fuzz_manifests(settings_of(5_000, soak=True))
    fuzz_onnx(settings_of(25_000, soak=True))
