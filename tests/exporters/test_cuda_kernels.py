"""Exports for CUDA in ONNX Runtime's CUDA provider on a played driver: placement, CUDA graphs, and kernels of a run.

Run by `make soak`, where gcc and nm are installed; see tests/played_cuda.py.
"""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
from played_cuda import Opened, build, opened
from tiny import Quiet

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime.ort.elf import loads
from ptexport.runtime.ort.providers import CUDA

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        loads("libcuda.so.1") or CUDA not in onnxruntime.get_available_providers(),
        reason="is for onnxruntime-gpu where there is no driver",
    ),
]
VARIANTS = [(precision, opset) for precision in ("fp32", "fp16", "bf16", "int4") for opset in (18, 23)]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def run_on_cuda(
    libraries: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str, str, int], dict[bool, Opened]]:
    """Export a tiny run for CUDA and open it, once per variant."""
    known: dict[tuple[str, str, int], dict[bool, Opened]] = {}

    def of(run: str, precision: str, opset: int) -> dict[bool, Opened]:
        key = (run, precision, opset)
        if key not in known:
            out = tmp_path_factory.mktemp("cuda") / "bundle"
            options = {"target": "cuda", "precision": precision, "opset": opset, "max_accuracy_drop": 100.0}
            export(ExportConfig(runs=(request.getfixturevalue(run),), out=out, **options), Quiet())  # type: ignore[arg-type]
            known[key] = opened(libraries, out / "model.onnx")
        return known[key]

    return of


@pytest.mark.parametrize(("precision", "opset"), VARIANTS)
@pytest.mark.parametrize("run", ["llama_run", "bert_run"])
def test_an_export_for_cuda_is_placed_and_captured(
    run: str, precision: str, opset: int, run_on_cuda: Callable[[str, str, int], dict[bool, Opened]]
) -> None:
    found = run_on_cuda(run, precision, opset)
    assert found[False].error is None, "placement passes"
    assert found[False].on_gpu > 50
    assert found[False].kernels > 50
    assert (found[True].error, found[True].captured) == (None, 1)
    assert (found[False].captured, found[True].kernels) == (0, 0), "replayed, not launched one by one"


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("run", ["llama_run", "bert_run"])
def test_fp16_launches_no_more_kernels_than_fp32(
    run: str, opset: int, run_on_cuda: Callable[[str, str, int], dict[bool, Opened]]
) -> None:
    half, full = (run_on_cuda(run, precision, opset)[False].kernels for precision in ("fp16", "fp32"))
    assert half <= full


@pytest.mark.parametrize("fault", ["ArgMax of integers", "a size meets a tensor"])
def test_control_graphs_as_they_were_are_refused(
    fault: str, libraries: Path, llama_bundle: Path, tmp_path: Path
) -> None:
    """Either of what kept exports from CUDA graphs before; without `cuda_graph` they open."""
    model = ir.load(llama_bundle / "model.onnx")
    if fault == "ArgMax of integers":
        (read,) = [node for node in model.graph if node.op_type == "ArgMax"]
        assert read.inputs[0] is not None
        cast = read.inputs[0].producer()
        assert cast is not None
        cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.INT32)
        cast.outputs[0].dtype = ir.DataType.INT32
    else:
        made = [
            node for node in model.graph if node.op_type == "Range" and str(node.outputs[0].name).endswith(".range")
        ]
        for node in made:
            assert node.inputs[0] is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    found = opened(libraries, tmp_path / "model.onnx")
    assert found[False].error is None
    assert "have not been partitioned" in str(found[True].error)
