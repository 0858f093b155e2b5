"""The readers of manifest.json and model.onnx on damaged files: a BundleError, or a value that is what it seems.

Each with a control: with one check taken out, the same draws find a file that it is needed for.
"""

import contextlib
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

from ptexport.runtime.bundle import manifest as manifest_
from ptexport.runtime.bundle import model_check
from ptexport.runtime.bundle.manifest import Manifest, TaskEntry, TasksManifest
from ptexport.runtime.bundle.model_check import check_model
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.bundle.protobuf import delimited, varint
from ptexport.runtime.errors import BundleError


def fuzz(strategy: st.SearchStrategy[bytes], check: Callable[[bytes], None], how: settings) -> None:
    how(given(strategy)(check))()


def tasks_manifest(manifest: Manifest) -> TasksManifest:
    shared = {name: getattr(manifest, name) for name in ("format", "name", "files", "backbone", "versions")}
    graph = {name: getattr(manifest.graph, name) for name in ("target", "opset", "ir_version", "read")}
    names = ("name", "method", "template", "fields", "labels", "label_words", "max_length", "abstain_below", "parity")
    folded = {name: getattr(manifest.graph, name) for name in ("prompt_tokens", "folded_tokens")}
    own = {name: getattr(manifest, name) for name in (*names, "golden")}
    task = TaskEntry(**own, **folded, fan_out=manifest.parity.alone)
    return TasksManifest(**shared, **graph, precision="fp32", fan_out=True, tasks=[task])


def check_manifest(kind: type[Manifest] | type[TasksManifest]) -> Callable[[bytes], None]:
    """A manifest that is taken can be written, and read again, as the same; a refusal is one sentence."""

    def check(data: bytes) -> None:
        refusal = ""
        try:
            manifest = kind.from_json(data, "m")
        except BundleError as e:
            refusal = str(e)
        assert len(refusal) < 1000
        assert "\n" not in refusal
        if not refusal:
            again = kind.from_json(manifest.to_json(), "m")
            assert msgspec.structs.replace(again, digest="") == msgspec.structs.replace(manifest, digest="")

    return check


def sealed(record: Any) -> bytes:
    """With a digest that is right, so that all behind it is reached."""
    return to_text({**record, "digest": digest_of(record)}).encode()


def fuzz_manifests(bundle: Path, how: settings) -> None:
    data = (bundle / "manifest.json").read_bytes()
    one = read_manifest(data, "m")
    many = tasks_manifest(one)
    for kind, manifest in ((Manifest, one), (TasksManifest, many)):
        record = msgspec.to_builtins(manifest)
        assert kind.from_json(sealed(record), "m").name == manifest.name
        fuzz(damaged_json(record).map(sealed), check_manifest(kind), how)
        fuzz(damaged(manifest.to_json()), check_manifest(kind), how)


def test_manifests(llama_bundle: Path) -> None:
    fuzz_manifests(llama_bundle, settings_of(400))


def test_control_numbers_that_are_no_json(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_, "_finite", float)
    monkeypatch.setattr(manifest_, "_no_number", float)
    with pytest.raises(AssertionError):
        fuzz_manifests(llama_bundle, settings_of(400, shrink=False))


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
def test_much_more(llama_bundle: Path) -> None:
    fuzz_manifests(llama_bundle, settings_of(5_000, soak=True))
    fuzz_onnx(settings_of(25_000, soak=True))
