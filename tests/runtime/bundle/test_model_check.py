"""Model files with the right hashes that ONNX Runtime would open, and must not see."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import onnxruntime
import pytest
from fuzz import small_model
from onnx import TensorProto, helper

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import file_entry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_check import check_model
from ptexport.runtime.bundle.protobuf import delimited, varint
from ptexport.runtime.errors import BundleError

Change = Callable[[onnx.ModelProto], object]


def branch_of(model: onnx.ModelProto) -> onnx.GraphProto:
    return model.graph.node[1].attribute[0].g


def set_external(model: onnx.ModelProto, **entries: str) -> None:
    for entry in model.graph.initializer[1].external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        model.graph.initializer[1].external_data.add(key=key, value=value)


def add_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Add", ["a", "c"], ["b"], [node], [helper.make_opsetid("", 18)]))


def nest(model: onnx.ModelProto, depth: int) -> None:
    graph = helper.make_graph([], "deepest", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", [""], [], then_branch=graph)], "deep", [], [])
    model.graph.node.append(helper.make_node("If", [""], [], then_branch=graph))


CHANGES: dict[str, tuple[Change, str]] = {
    "a domain": (lambda m: setattr(m.graph.node[0], "domain", "evil"), "got operator evil::Add, need one of ONNX, or"),
    "a domain in a subgraph": (lambda m: setattr(branch_of(m).node[0], "domain", "evil"), "operator evil::Constant"),
    "a domain that is imported": (lambda m: m.opset_import.add(domain="evil", version=1), "operators of 'evil'"),
    "an operator that opens files": (
        lambda m: m.graph.node.append(helper.make_node("EPContext", [], ["e"], domain="com.microsoft")),
        "operator com.microsoft::EPContext",
    ),
    "functions": (add_function, "got functions of its own"),
    "training": (lambda m: m.training_info.add(), "got a graph to train"),
    "values twice": (
        lambda m: m.graph.initializer[0].float_data.extend([9, 9]),
        "tensor 'inside' has values in float_data and in raw_data, need them once",
    ),
    "values twice in a subgraph": (
        lambda m: setattr(branch_of(m).node[0].attribute[0].t, "raw_data", bytes(8)),
        "has values in float_data and in raw_data",
    ),
    "values here and in a file": (
        lambda m: setattr(m.graph.initializer[1], "raw_data", bytes(8)),
        "tensor 'outside' has values in raw_data and in external_data",
    ),
    # onnx's checker takes this one too.
    "values here, and in a file that is not read": (
        lambda m: m.graph.initializer[0].external_data.extend(m.graph.initializer[1].external_data),
        "tensor 'inside' has values in raw_data and in external_data",
    ),
    "a place that is not used": (
        lambda m: setattr(m.graph.initializer[1], "data_location", TensorProto.DEFAULT),
        "has a data_location that does not match its values",
    ),
    "no values": (lambda m: m.graph.initializer[0].ClearField("raw_data"), "tensor 'inside' has no values"),
    "a name twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "tensor 'inside' twice"),
    "a sparse tensor": (lambda m: m.graph.sparse_initializer.add(), "got sparse tensors"),
    "strings": (lambda m: m.graph.initializer[0].string_data.append(b"a"), "got a tensor of strings"),
    "another type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "has data type 99"),
    "a shape too large": (lambda m: m.graph.initializer[0].dims.append(3), "has 8 bytes, need 24 for the shape"),
    "a shape below 0": (lambda m: m.graph.initializer[0].dims.append(-1), "has 8 bytes, need"),
    "dimensions": (lambda m: m.graph.initializer[0].dims.extend([1] * 32), "has 33 dimensions"),
    "depth": (lambda m: nest(m, 20), "got messages nested 9 deep, need at most 8"),
    **{
        f"a file at {path}": (lambda m, path=path: set_external(m, location=path), "tensor 'outside' is in .*, need")
        for path in ("/etc/passwd", "../model.onnx.data", "./model.onnx.data", "model.onnx", "config.json", "")
    },
    "a length past the end": (
        lambda m: set_external(m, offset="4"),
        "has 8 bytes from 4 of model.onnx.data, which has 8 bytes",
    ),
    "a length of another shape": (lambda m: set_external(m, length="4"), "has 4 bytes, need 8"),
    "an offset below 0": (lambda m: set_external(m, offset="-4"), "has length '8' and offset '-4', need two numbers"),
    "an offset with an underscore": (lambda m: set_external(m, offset="0_0"), "need two numbers"),
    "an offset of many digits": (lambda m: set_external(m, offset="9" * 5000), "need two numbers"),
    "a place that says more": (lambda m: set_external(m, basepath="/"), "need length, location and offset"),
    "a place twice": (
        lambda m: m.graph.initializer[1].external_data.add(key="location", value="/etc/passwd"),
        "has location twice",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_no_export_writes(case: str) -> None:
    change, message = CHANGES[case]
    model = small_model()
    check_model(model.SerializeToString(), "m", {"model.onnx.data": 8})
    change(model)
    with pytest.raises(BundleError, match=f"m: .*{message}.*; no export writes this, copy the bundle again from"):
        check_model(model.SerializeToString(), "m", {"model.onnx.data": 8})


GRAPH = small_model().graph.SerializeToString()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (delimited(7, GRAPH) * 2, "field 7 of ModelProto twice, need it once"),
        (delimited(7, GRAPH) + varint(99 << 3) + b"\0", "got field 99 of ModelProto, which is unknown"),
        (delimited(7, GRAPH) + varint(7 << 3) + b"\0", "got field 7 of ModelProto"),
        (varint(1 << 3) + b"\x8a" + b"\x80" * 8 + b"\x02" + delimited(7, GRAPH), "a number of more than 64 bits"),
        (varint(1 << 3) + b"\x0a", "it has no graph"),
        (delimited(7, GRAPH)[:-1], "cut short"),
        (delimited(7, delimited(1, delimited(7, b"") + delimited(7, b"evil"))), "field 7 of NodeProto twice"),
        (delimited(7, delimited(1, delimited(4, b"\xff"))), "not an ONNX model .*utf-8"),
    ],
)
def test_what_other_readers_read_otherwise(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_model(data, "m", {"model.onnx.data": 8})


def sealed(bundle: Path, folder: Path, change: Change) -> Path:
    """Change a copy of a bundle's graph, and write a manifest with hashes and a digest that are right."""
    copy = Path(shutil.copytree(bundle, folder))
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    change(model)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    manifest = read_manifest((copy / "manifest.json").read_bytes(), "")
    files = {**manifest.files, "model.onnx": file_entry(copy / "model.onnx")}
    (copy / "manifest.json").write_bytes(msgspec.structs.replace(manifest, files=files).to_json())
    return copy


def second_values(model: onnx.ModelProto) -> None:
    """A backdoor where a viewer reads the one field and ONNX Runtime, which opens it, the other."""
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "label_bias")
    bias.float_data.extend([100.0, -100.0])


def test_onnx_runtime_sees_no_byte_of_it(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine.open(sealed(llama_bundle, tmp_path / "same", lambda model: None))
    bundle = sealed(llama_bundle, tmp_path / "backdoor", second_values)
    opened: list[object] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(BundleError, match="tensor 'label_bias' has values in float_data and in raw_data"):
        Engine.open(bundle)
    assert not opened


def test_control_onnx_runtime_does_open_it(llama_bundle: Path, tmp_path: Path) -> None:
    bundle = sealed(llama_bundle, tmp_path / "backdoor", second_values)
    onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
