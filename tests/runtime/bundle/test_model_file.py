"""A model file taken apart and put together, against onnx_ir; and what is no model file."""

import contextlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import BundleError


@pytest.fixture(params=["llama_bundle", "bert_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_the_arrays_are_those_onnx_reads(bundle: Path) -> None:
    data = (bundle / "model.onnx").read_bytes()
    file = OnnxFile.parse(data, "model.onnx")
    model = ir.load(bundle / "model.onnx")
    given = [value.name for value in model.graph.inputs if value.const_value is not None]
    assert list(file.arrays) == given
    assert {"prompt_embeddings", "label_weights", "label_bias"} <= set(given)
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(array, model.graph.initializers[name].const_value.numpy())
    assert file.with_arrays(file.arrays) == data


def test_other_arrays_are_written_as_onnx_writes_them(bundle: Path, tmp_path: Path) -> None:
    file = OnnxFile.parse((bundle / "model.onnx").read_bytes(), "model.onnx")
    others = {name: np.repeat(array, 3, axis=0) + 1 for name, array in file.arrays.items() if name != "prefix_kv"}
    if "prefix_kv" in file.arrays:
        others["prefix_kv"] = file.arrays["prefix_kv"][..., :0, :]  # no leading token at all
    model = ir.load(bundle / "model.onnx")
    for name, array in others.items():
        model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    ir.save(model, tmp_path / "model.onnx")
    written = (tmp_path / "model.onnx").read_bytes()
    assert file.with_arrays(others) == written
    again = OnnxFile.parse(written, "model.onnx")
    assert again.frame_sha256 == file.frame_sha256
    assert {name: array.shape for name, array in again.arrays.items()} == {n: a.shape for n, a in others.items()}


def test_control_anything_else_changes_the_frame(bundle: Path, tmp_path: Path) -> None:
    file = OnnxFile.parse((bundle / "model.onnx").read_bytes(), "model.onnx")
    model = ir.load(bundle / "model.onnx")
    next(node for node in model.graph if node.op_type == "MatMul").name = "other"
    ir.save(model, tmp_path / "model.onnx")
    other = OnnxFile.parse((tmp_path / "model.onnx").read_bytes(), "model.onnx")
    assert other.frame_sha256 != file.frame_sha256
    constant = ir.load(bundle / "model.onnx")
    for value in [value for value in constant.graph.inputs if value.const_value is not None]:
        constant.graph.inputs.remove(value)
    ir.save(constant, tmp_path / "model.onnx")
    assert OnnxFile.parse((tmp_path / "model.onnx").read_bytes(), "model.onnx").arrays == {}


@pytest.mark.parametrize("data", [b"", b"\x08", b"\x3a\x05ab", b"\x0b", b"\xff" * 20, b"\x3a\x00\x3a\x00"])
def test_no_model(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"m: not an ONNX model \(.*\); copy the bundle again"):
        OnnxFile.parse(data, "m")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(data: st.DataObject, bert_bundle: Path) -> None:
    whole = bytearray((bert_bundle / "model.onnx").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        whole[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BundleError):
        OnnxFile.parse(bytes(whole[: data.draw(st.integers(0, len(whole)))]), "m")
