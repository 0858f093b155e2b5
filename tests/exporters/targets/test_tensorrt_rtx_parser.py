"""TensorRT RTX itself, which needs its package and no GPU: its parser on every architecture, engines, and the table.

    pip install 'ptexport[tensorrt-rtx]'
    pytest -m soak -s tests/exporters/targets/test_tensorrt_rtx_parser.py

`-s` shows what the parser says beside what the table of TensorRT's operators predicts.
"""

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tiny import ARCHITECTURES, Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.engine import profile_of
from ptexport.exporters.export import export
from ptexport.exporters.targets.targets import TARGETS
from ptexport.exporters.targets.tensorrt import not_for_tensorrt
from ptexport.exporters.targets.tensorrt_rtx import build, refusals
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.bundle.manifest import Precision
from ptexport.runtime.errors import ExportError

pytestmark = pytest.mark.soak
CARDS = ("8.9", "12.0")
CAUSAL = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


@pytest.fixture(autouse=True)
def _package() -> None:
    pytest.importorskip("tensorrt_rtx")


def run_of(architecture: str, model_of: Callable[[str], Path], rows_file: Path, folder: Path) -> Path:
    template = "[P*2] Review: {text} It was [P*2]" if architecture in CAUSAL else "[P*2] {text} [P] it was [MASK]"
    longest = 24 if architecture == "mistral" else 48
    return train_tiny(model_of(architecture), rows_file, template, folder / "run", max_length=longest)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_in_every_precision(
    architecture: str,
    model_of: Callable[[str], Path],
    rows_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of(architecture, model_of, rows_file, tmp_path)
    for precision in TARGETS["tensorrt-rtx"].precisions:
        if (architecture, precision) == ("albert", "int8"):
            continue  # ONNX Runtime's CPU provider fails on ranges of layers that share weights, so nothing is exported
        out = tmp_path / precision
        config = ExportConfig(
            runs=(run,),
            out=out,
            target="tensorrt-rtx",
            precision=precision,
            max_accuracy_drop=100,
            compute_capabilities=CARDS,
        )
        started = time.perf_counter()
        engine = export(config, Quiet()).engine
        seconds = time.perf_counter() - started
        assert engine is not None
        assert engine.compute_capabilities == list(CARDS)
        predicted = not_for_tensorrt(ir.load(out / "model.onnx"))
        size = Bundle.open(out).manifest.files["engine.rtx"].size_bytes
        with capsys.disabled():
            table = f"table: {'; '.join(predicted)}" if predicted else "table agrees"
            print(
                f"\n{architecture} {precision}: parsed, {engine.layers} layers, {size} bytes, {seconds:.1f} s; {table}"
            )


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_attention_of_opset_23_is_parsed_and_not_built(
    model: str, precision: Precision, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """The table rejects it, the parser takes it, and the builder has no kernel for it: the target stays at opset 18."""
    run = run_of(model, model_of, rows_file, tmp_path)
    out = tmp_path / "out"
    export(
        ExportConfig(runs=(run,), out=out, target="cuda", precision=precision, opset=23, max_accuracy_drop=100), Quiet()
    )
    assert "Attention: not supported" in not_for_tensorrt(ir.load(out / "model.onnx"))
    assert refusals(out / "model.onnx") == []
    with pytest.raises(ExportError, match=r"no engine was built .*Attention operation was not supported"):
        build(out / "model.onnx", CARDS, profile_of(out / "model.onnx", 48))


def test_an_operator_that_the_parser_refuses(llama_bundle: Path, tmp_path: Path) -> None:
    assert refusals(llama_bundle / "model.onnx") == []
    model = onnx.load(llama_bundle / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    (tmp_path / "model.onnx.data").write_bytes((llama_bundle / "model.onnx.data").read_bytes())
    onnx.save(model, tmp_path / "model.onnx")
    assert any("FusedMatMul" in why for why in refusals(tmp_path / "model.onnx"))
