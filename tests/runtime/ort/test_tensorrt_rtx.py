"""Which engines fit which cards and tasks; no card is present."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ptexport.runtime.bundle.manifest import EngineEntry, ShapeRange
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort import tensorrt_rtx
from ptexport.runtime.ort.cuda_driver import Gpu
from ptexport.runtime.ort.execution import Execution
from ptexport.runtime.ort.tensorrt_rtx import check_room, engine_for

ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", memory_bytes=24 << 30, driver_cuda="13.0")
ENGINE = EngineEntry(
    compute_capabilities=["8.9", "12.0"],
    tensorrt_rtx="1.7.1.116",
    layers=7,
    profile={
        "input_ids": ShapeRange(least=[1, 1], usual=[8, 64], most=[32, 128]),
        "label_bias": ShapeRange(least=[1], usual=[16], most=[128]),
    },
)
MODEL = Path("bundle") / "model.onnx"


def test_an_engine_for_this_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "read_gpu", lambda device: ADA)
    assert engine_for(MODEL, ENGINE, 0) == Path("bundle") / "engine.onnx"


@pytest.mark.parametrize("card", ["9.0", "8.6"])
def test_an_engine_for_other_cards_is_refused_by_name(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = msgspec.structs.replace(ADA, name="a card", compute_capability=card)
    monkeypatch.setattr(tensorrt_rtx, "read_gpu", lambda device: other)
    need = rf"has engines for compute capability 8.9 and 12.0, this machine has {card} \(a card\); export it for this"
    with pytest.raises(ProviderError, match=need):
        engine_for(MODEL, ENGINE, 0)


def test_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: int) -> Gpu:
        raise ProviderError(f"GPU {device}: no driver; install an NVIDIA driver, or use provider cpu")

    monkeypatch.setattr(tensorrt_rtx, "read_gpu", none)
    need = r"8.9 and 12.0, this machine has no GPU to run it \(GPU 1: no driver\); use provider cpu$"
    with pytest.raises(ProviderError, match=need):
        engine_for(MODEL, ENGINE, 1)


def test_a_bundle_without_an_engine(llama_bundle: Path) -> None:
    execution = Execution(provider="tensorrt-rtx", device=0, threads=1, cuda_graph=False, build="allowed")
    with pytest.raises(ProviderError, match="this bundle has no engine, need one; export it with --target"):
        execution.open(llama_bundle / "model.onnx", {}, 48)


def test_a_longer_row_than_the_engine_takes_is_refused_where_it_is_opened(
    llama_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "read_gpu", lambda device: ADA)
    execution = Execution(provider="tensorrt-rtx", device=0, threads=1, cuda_graph=False, build="allowed")
    with pytest.raises(ProviderError, match=r"input_ids has the shape \[1, 500\], the engine takes"):
        execution.open(llama_bundle / "model.onnx", {}, 500, ENGINE)


def test_room() -> None:
    check_room(ENGINE, {"label_bias": np.zeros(128, dtype=np.float32)}, 128, "task.ptpack")
    for name, shape, length, need in (
        ("label_bias", (129,), 128, r"label_bias has the shape \[129\], the engine takes \[1\] to \[128\]"),
        ("label_bias", (1, 2), 128, r"label_bias has the shape \[1, 2\]"),
        ("prefix_kv", (1,), 128, "prefix_kv has the shape .*, the engine takes no such input"),
        ("label_bias", (2,), 129, r"input_ids has the shape \[1, 129\], the engine takes \[1, 1\] to \[32, 128\]"),
    ):
        with pytest.raises(ProviderError, match=f"^task.ptpack: {need}"):
            check_room(ENGINE, {name: np.zeros(shape, dtype=np.float32)}, length, "task.ptpack")
