"""TensorRT's options, cache and refusals, as far as a machine without a GPU can tell."""

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from ptexport.runtime.bundle.folder import file_entry
from ptexport.runtime.bundle.manifest import FileEntry
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort import tensorrt
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.cuda_driver import Gpu
from ptexport.runtime.ort.providers import TENSORRT, Provider
from ptexport.runtime.ort.tensorrt import ENGINE, Engines, tensorrt_options

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


def test_this_onnxruntime_takes_the_options(tmp_path: Path) -> None:
    """Names, and which are True or False rather than 1 or 0, are looked up in the wheel."""
    folder = Path(str(tensorrt.load_onnxruntime().__file__)).parent / "capi"
    binding = next(folder.glob("onnxruntime_pybind11_state*")).read_bytes()
    library = (folder / "libonnxruntime_providers_tensorrt.so").read_bytes()
    given: dict[str, str] = {}

    def load(at: Path, provider: Provider) -> None:
        given.update(provider.options)
        if at != tmp_path / "model.onnx":
            return
        Path(given["trt_ep_context_file_path"]).write_bytes(b"an engine")

    graphed = Provider(name=TENSORRT, options=(("device_id", "0"), ("trt_cuda_graph_enable", "True")))
    engines(provider=graphed).open(tmp_path / "model.onnx", "allowed", load)
    assert len(given) > 8
    for name, value in given.items():
        assert name.encode() in library + binding, f"{name} is no option of this onnxruntime-gpu"
        is_boolean = f"The value for the key '{name}' should be 'True' or 'False'".encode() in binding
        assert (value in ("True", "False")) == is_boolean, name


def test_the_folder_is_named_by_all_that_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = engines()
    other_device = Provider(name=TENSORRT, options=(("device_id", "1"), ("trt_cuda_graph_enable", "True")))
    assert first.folder == engines().folder == engines(provider=other_device).folder
    others = [
        engines(files=FILES | {"model.onnx": FileEntry(sha256="0" * 64, size_bytes=9)}),
        engines(files=FILES | {"model.onnx.data": FileEntry(sha256="0" * 64, size_bytes=9)}),
        engines(buckets=Buckets.up_to(128)),
        engines(inputs=INPUTS[:1]),
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


class PlayedSession:
    """Writes an engine as TensorRT's provider does, when it is let go; `writes` says what."""

    opened: ClassVar[list[Path]] = []

    def __init__(self, at: Path, provider: Provider, writes: bytes | None = b"an engine") -> None:
        self.opened.append(at)
        self._path = dict(provider.options).get("trt_ep_context_file_path")
        self._writes = writes

    def __del__(self) -> None:
        if self._path is not None and self._writes is not None:
            Path(self._path).write_bytes(self._writes)


def test_an_engine_is_built_once_and_then_opened_alone(tmp_path: Path) -> None:
    made, model = engines(), tmp_path / "model.onnx"
    PlayedSession.opened.clear()
    with pytest.raises(ProviderError, match=r"got no engine in .*; run 'ptexport warmup' on this device first"):
        made.open(model, "never", PlayedSession)
    made.open(model, "allowed", PlayedSession)
    made.open(model, "never", PlayedSession)
    assert PlayedSession.opened == [model, made.folder / ENGINE, made.folder / ENGINE], "what is kept is what runs"
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in made.folder.parent.iterdir()) == [made.folder.name], "nothing else is left"


def test_what_is_opened_may_not_be_compiled(tmp_path: Path) -> None:
    made = engines()
    made.open(tmp_path, "allowed", PlayedSession)
    seen: list[dict[str, str]] = []
    made.open(tmp_path, "never", lambda at, provider: seen.append(dict(provider.entries)))
    assert seen == [{"session.disable_model_compile": "1"}]


def test_no_engine_of_the_whole_graph_is_an_error(tmp_path: Path) -> None:
    made = engines()
    with pytest.raises(ProviderError, match="got no engine for the whole graph"):
        made.open(tmp_path / "model.onnx", "allowed", lambda at, provider: PlayedSession(at, provider, None))
    assert list(made.folder.parent.iterdir()) == []


def test_who_comes_second_takes_what_the_first_kept(tmp_path: Path) -> None:
    made = engines()

    def while_another_builds(at: Path, provider: Provider) -> PlayedSession:
        if not made.folder.exists():
            made.open(tmp_path / "model.onnx", "allowed", PlayedSession)
        return PlayedSession(at, provider, b"another")

    made.open(tmp_path / "model.onnx", "allowed", while_another_builds)
    assert (made.folder / ENGINE).read_bytes() == b"an engine"
    assert list(made.folder.parent.iterdir()) == [made.folder]


@pytest.mark.parametrize("fault", ["cut", "changed", "record", "other"])
def test_an_engine_that_was_changed_is_refused(fault: str, tmp_path: Path) -> None:
    made = engines()
    made.open(tmp_path / "model.onnx", "allowed", PlayedSession)
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
    with pytest.raises(ProviderError, match="got a damaged engine; remove the folder"):
        made.open(tmp_path / "model.onnx", "never", PlayedSession)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    made = engines()
    made.open(tmp_path / "model.onnx", "allowed", PlayedSession)
    made.folder.chmod(0o770)
    with pytest.raises(ProviderError, match="got a folder that others may use, need a private one"):
        made.open(tmp_path / "model.onnx", "never", PlayedSession)
    made.folder.chmod(0o700)
    moved = made.folder.rename(tmp_path / "moved")
    made.folder.symlink_to(moved)
    with pytest.raises(ProviderError, match="got a folder that others may use, need a private one"):
        made.open(tmp_path / "model.onnx", "never", PlayedSession)
