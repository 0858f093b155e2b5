"""TensorRT's options, cache and refusals, as far as a machine without a GPU can tell."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ptexport.runtime import tensorrt
from ptexport.runtime.buckets import Buckets
from ptexport.runtime.bundle import file_entry
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.gpu import Gpu
from ptexport.runtime.graph import Execution
from ptexport.runtime.manifest import FileEntry
from ptexport.runtime.providers import TENSORRT, Provider
from ptexport.runtime.tensorrt import ENGINE, Engines, tensorrt_options

FILES = {name: FileEntry(sha256=name[-4:] * 16, size_bytes=9) for name in ("model.onnx", "model.onnx.data")}
INPUTS = ["input_ids", "attention_mask"]
ORIN = Gpu(name="Orin", compute_capability="8.7", memory_bytes=8 << 30, driver_cuda="12.6")
PROVIDER = Provider(name=TENSORRT, options=(("device_id", "0"),))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tensorrt, "read_gpu", lambda number: ORIN)
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: "10.3.0")


def engines(**changes: Any) -> Engines:
    given = {"provider": PROVIDER, "files": FILES, "inputs": INPUTS, "buckets": Buckets.up_to(256)} | changes
    return Engines.of(**given)


def test_the_profile_names_every_input() -> None:
    options = tensorrt_options(INPUTS, Buckets.up_to(256))
    assert options["trt_profile_min_shapes"] == "input_ids:1x16,attention_mask:1x16"
    assert options["trt_profile_opt_shapes"] == "input_ids:8x64,attention_mask:8x64"
    assert options["trt_profile_max_shapes"] == "input_ids:32x256,attention_mask:32x256"
    assert not any("fp16" in name or "int8" in name for name in options if "layer_norm" not in name), "is in the graph"
    library = Path(str(tensorrt.load_onnxruntime().__file__)).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    known = library.read_bytes()
    for name in dict(engines().provider.options):
        assert name.encode() in known, f"{name} is no option of this onnxruntime-gpu"


def test_the_folder_is_named_by_all_that_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = engines()
    assert first.folder == engines().folder
    others = [
        engines(files=FILES | {"model.onnx": FileEntry(sha256="0" * 64, size_bytes=9)}),
        engines(files=FILES | {"model.onnx.data": FileEntry(sha256="0" * 64, size_bytes=9)}),
        engines(buckets=Buckets.up_to(128)),
        engines(inputs=INPUTS[:1]),
        engines(provider=Provider(name=TENSORRT, options=(("device_id", "0"), ("trt_cuda_graph_enable", "1")))),
    ]
    for what, value in (
        ("read_gpu", lambda number: msgspec.structs.replace(ORIN, compute_capability="8.9")),
        ("tensorrt_version", lambda: "10.4.0"),
        ("load_onnxruntime", lambda: type("", (), {"__version__": "1.18.0"})),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tensorrt, what, value)
            others.append(engines())
    assert len({made.folder for made in (first, *others)}) == 1 + len(others)


def test_an_engine_is_built_once_and_then_opened_alone(tmp_path: Path) -> None:
    made, model = engines(), tmp_path / "model.onnx"
    with pytest.raises(ProviderError, match=r"no engine is kept in .*; run 'ptexport warmup' on this device first"):
        made.opened(model, "never")
    at, provider = made.opened(model, "allowed")
    assert at == model
    assert dict(provider.entries)["ep.context_file_path"] == str(made.folder / ENGINE)
    assert made.folder.stat().st_mode & 0o777 == 0o700
    made.keep()  # ONNX Runtime wrote none
    assert made.opened(model, "allowed")[0] == model
    (made.folder / ENGINE).write_bytes(b"an engine")
    made.keep()
    at, provider = made.opened(model, "never")
    assert at == made.folder / ENGINE
    assert provider.entries == (("session.disable_model_compile", "1"),)


@pytest.mark.parametrize("fault", ["cut", "changed", "record", "other"])
def test_an_engine_that_was_changed_is_refused(fault: str, tmp_path: Path) -> None:
    made = engines()
    made.opened(tmp_path / "model.onnx", "allowed")
    (made.folder / ENGINE).write_bytes(b"an engine")
    made.keep()
    record = made.folder / "engine.json"
    if fault == "cut":
        (made.folder / ENGINE).write_bytes(b"an eng")
    elif fault == "changed":
        (made.folder / ENGINE).write_bytes(b"an Engine")
    elif fault == "record":
        record.write_bytes(record.read_bytes()[:-3])
    else:
        entry = msgspec.to_builtins(file_entry(made.folder / ENGINE))
        record.write_bytes(msgspec.json.encode({"engine": entry, "made_for": {"gpu": "another"}}))
    with pytest.raises(ProviderError, match="holds no whole engine; remove the folder"):
        made.opened(tmp_path / "model.onnx", "never")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    made = engines()
    made.opened(tmp_path / "model.onnx", "allowed")
    (made.folder / ENGINE).write_bytes(b"an engine")
    made.keep()
    made.folder.chmod(0o770)
    with pytest.raises(ProviderError, match="is not a folder of this user's alone"):
        made.opened(tmp_path / "model.onnx", "never")
    made.folder.chmod(0o700)
    moved = made.folder.rename(tmp_path / "moved")
    made.folder.symlink_to(moved)
    with pytest.raises(ProviderError, match="is not a folder of this user's alone"):
        made.opened(tmp_path / "model.onnx", "never")


def test_default_values_are_not_for_tensorrt(llama_bundle: Path) -> None:
    execution = Execution(asked="tensorrt", device=0, threads=1, cuda_graph=False, build="allowed")
    with pytest.raises(ProviderError, match="need constants; export it with --target tensorrt"):
        execution._on_tensorrt(llama_bundle / "model.onnx", FILES, PROVIDER, Buckets.up_to(64))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
