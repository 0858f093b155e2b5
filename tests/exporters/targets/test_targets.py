"""What each target accepts and rejects, and which of several graphs is used on this machine.

Other tests export every kind of graph for TensorRT: parity/test_compare.py, passes/test_bind.py (the architectures) and
multitask/test_export.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from baked import bake_run
from played_rtx import PlayedRtx
from tiny import Quiet, save_model, train_tiny, worst

from ptexport.exporters.autotune import PAUSE_S, ROUNDS, SIZES, time_candidates, winner
from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.texts import texts_to_check
from ptexport.exporters.targets import targets
from ptexport.exporters.targets.targets import TARGETS, check_target
from ptexport.exporters.targets.tensorrt import not_for_tensorrt, tensorrt_operators
from ptexport.exporters.trace.trace import IR_VERSION
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.bundle.manifest import TargetName
from ptexport.runtime.bundle.measured import Candidate, Timing
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run


def bake_at(run: Run, opset: int, folder: Path) -> Path:
    folder.mkdir()
    backbone = load_backbone_of(run.config, Path())
    bake_run(run, backbone, folder, opset=opset)
    return folder


def test_every_target_takes_what_is_traced() -> None:
    for name, target in TARGETS.items():
        assert target.name == name
        assert set(target.opsets) <= {18, 23}
        assert target.opsets[0] == 18
    assert IR_VERSION == 10
    first, last = tensorrt_operators().opsets
    assert all(first <= opset <= last for opset in TARGETS["tensorrt"].opsets)


@pytest.mark.parametrize("name", TARGETS)
def test_a_bundle_for_each_target(
    name: TargetName, llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PlayedRtx(monkeypatch)
    cards = ("8.9",) if name == "tensorrt-rtx" else ()
    config = ExportConfig(runs=(llama_run,), out=tmp_path / "bundle", target=name, compute_capabilities=cards)
    manifest = export(config, Quiet())
    graph = Bundle.open(tmp_path / "bundle").manifest.graph
    assert (graph.target, graph.opset, graph.ir_version, graph.autotuned) == (name, 18, 10, [])
    assert worst(manifest.task.parity) < 1e-4


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_what_old_runtimes_lack(bundle: str, request: pytest.FixtureRequest) -> None:
    """ONNX Runtime 1.18 and 1.19 have no ArgMax of int64, and on CUDA no version has one of integers."""
    model = ir.load(request.getfixturevalue(bundle) / "model.onnx")
    reads = [node for node in model.graph if node.op_type == "ArgMax"]
    assert len(reads) == 1
    for node in reads:
        value = node.inputs[0]
        assert value is not None
        cast = value.producer()
        assert cast is not None
        assert (cast.op_type, cast.attributes["to"].as_int()) == ("Cast", ir.DataType.FLOAT)


def test_an_operator_that_the_target_does_not_take(llama_run: Path, tmp_path: Path) -> None:
    """Attention of opset 23 is no operator of TensorRT 10.3; neither is anything of ONNX Runtime's own."""
    folder = bake_at(Run.read(llama_run), 23, tmp_path / "23")
    with pytest.raises(ExportError, match=r"target tensorrt: rejects opset 23: not in 9 to 20; .*Attention"):
        check_target("tensorrt", folder)
    model = ir.load(bake_at(Run.read(llama_run), 18, tmp_path / "18") / "model.onnx")
    assert not_for_tensorrt(model) == []
    node = next(node for node in model.graph if node.op_type == "MatMul")
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    assert not_for_tensorrt(model) == ["com.microsoft::FusedMatMul: not a standard operator"]


def test_a_refused_export_leaves_nothing(llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = targets.Target(name="web", opsets=(18,), precisions=("fp32",), max_file_bytes=10_000)
    monkeypatch.setitem(targets.TARGETS, "web", small)
    with pytest.raises(ExportError, match=r"target web: model.onnx has \d+ bytes, need at most 10000; use a smaller"):
        export(ExportConfig(runs=(llama_run,), out=tmp_path / "out" / "bundle", target="web"), Quiet())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "opset", "autotune", "message"),
    [
        ("tensorrt", 23, False, "target tensorrt: got opset 23, need 18; leave --opset out"),
        ("cpu", 20, False, "target cpu: got opset 20, need 18 or 23;"),
        ("cuda", None, True, "target cuda: --tune times graphs on this machine's CPU, need target cpu"),
        ("cpu", 18, True, "opset 18: --tune chooses the opset; leave one of the two out"),
    ],
)
def test_what_does_not_go_together(
    target: TargetName, opset: int | None, autotune: bool, message: str, tmp_path: Path
) -> None:
    config = ExportConfig(
        runs=(tmp_path / "run",), out=tmp_path / "bundle", target=target, opset=opset, autotune=autotune
    )
    with pytest.raises(ExportError, match=message):
        export(config, Quiet())


class Stages(Quiet):
    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str) -> None:
        self.names.append(name)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What tuning waits, which tests do not."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def test_tuning_times_every_graph_and_says_so(llama_run: Path, pauses: list[float], tmp_path: Path) -> None:
    stages = Stages()
    export(ExportConfig(runs=(llama_run,), out=tmp_path / "bundle", autotune=True), stages)
    assert pauses == [PAUSE_S] * len(SIZES) * (ROUNDS + 1) * 2, "before each run, so that no other thread spins"
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir() if path.is_dir()) == []
    graph = Bundle.open(tmp_path / "bundle").manifest.graph
    assert [candidate.opset for candidate in graph.autotuned] == [18, 23]
    assert graph.opset == winner(graph.autotuned)
    assert ir.load(tmp_path / "bundle" / "model.onnx").opset_imports[""] == graph.opset
    longest = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())["model_max_length"]
    for candidate in graph.autotuned:
        assert candidate.same_labels
        assert [(t.batch, t.tokens) for t in candidate.timings] == [(b, min(s, longest)) for b, s in SIZES]
        assert all(timing.median_ms > 0 for timing in candidate.timings)
    assert "timing opset 18 and opset 23 on 8 x 28 tokens" in stages.names


def candidate(opset: int, *times: float, same_labels: bool = True) -> Candidate:
    timings = [Timing(batch=b, tokens=s, median_ms=ms) for (b, s), ms in zip(SIZES, times, strict=True)]
    return Candidate(opset=opset, same_labels=same_labels, timings=timings)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (candidate(23, 9.0, 90.0, 45.0), 23),
        (candidate(23, 9.9, 99.0, 49.5), 18),  # within noise
        (candidate(23, 2.0, 120.0, 60.0), 23),  # sizes count alike
        (candidate(23, 11.0, 110.0, 55.0), 18),
        (candidate(23, 1.0, 1.0, 1.0, same_labels=False), 18),
    ],
)
def test_the_fastest_wins_if_its_labels_are_the_same(other: Candidate, expected: int) -> None:
    assert winner([candidate(18, 10.0, 100.0, 50.0), other]) == expected


@pytest.mark.usefixtures("pauses")
def test_control_a_graph_with_other_labels_is_seen(llama_run: Path, tmp_path: Path) -> None:
    run = Run.read(llama_run)
    folders = {opset: bake_at(run, opset, tmp_path / str(opset)) for opset in (18, 23)}
    model = ir.load(folders[23] / "model.onnx")
    rows = model.graph.initializers["label_weights"]
    assert rows.const_value is not None
    rows.const_value = ir.tensor(np.ascontiguousarray(rows.const_value.numpy()[::-1]), name="label_weights")
    ir.save(model, folders[23] / "model.onnx")
    first, second = time_candidates(JointTasks({"task": run}), folders, texts_to_check(run, run.check_rows), Quiet())
    assert (first.same_labels, second.same_labels) == (True, False)
    assert winner([first, second]) == 18


EXPORT = """
import re, sys
from ptexport.toolkit.cli.main import main
try:
    main()
finally:
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.soak
def test_weights_past_two_gigabytes(rows_file: Path, tmp_path: Path) -> None:
    """Past what one protobuf message and a signed 32-bit offset hold; two layers, so that only the size is real."""
    model = save_model(tmp_path / "wide", "llama", hidden_size=2048, intermediate_size=43_000)
    run = train_tiny(model, rows_file, "[P*2] Review: {text} It was [P*2]", tmp_path / "run", encoder="none")
    bundle = tmp_path / "bundle"
    command = [sys.executable, "-c", EXPORT, "export", str(run), "--out", str(bundle)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    manifest = Bundle.open(bundle).manifest
    weights_bytes = manifest.files["model.onnx.data"].size_bytes
    assert weights_bytes > 2**31
    assert int(said.splitlines()[-1]) <= 2.5 * weights_bytes, "peak memory of the export"
    assert manifest.task.parity.rows == len(Run.read(run).check_rows) + 3
    assert worst(manifest.task.parity) <= manifest.task.parity.tolerance
    (answer,) = Engine.open(bundle).predict(["the film was bright"])
    assert answer.label in ("positive", "negative")
    with pytest.raises(ExportError, match=r"target web: model.onnx.data has .* use a smaller backbone"):
        check_target("web", bundle)
