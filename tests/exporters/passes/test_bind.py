"""The edits of a traced graph: the read position against the oracle, controls, and what the manifest says."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from baked import check_parity
from tiny import sample, train_tiny

from ptexport.exporters.bake import bake, pipeline
from ptexport.exporters.inspect.summary import summarize_graph
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import fail_on_difference
from ptexport.exporters.passes.read_position import ReadPositionPass
from ptexport.exporters.targets.tensorrt import not_for_tensorrt
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

# Which nodes still take all positions: keys and values need the norm before them; GPT-2 and ModernBERT make queries in
# one product with keys and values, so that what of it is not needed is dropped behind it.
STOPS = {
    "llama": {"Add", "Mul", "Where", "Unsqueeze"},
    "qwen3": {"Add", "Mul", "Where", "Unsqueeze"},
    "gpt2": {"Add", "Split", "Where"},
    "bert": {"LayerNormalization", "Where"},
    "albert": {"LayerNormalization", "Where"},
    "distilbert": {"LayerNormalization", "Where"},
    "electra": {"LayerNormalization", "Where"},
    "roberta": {"LayerNormalization", "Where"},
}
TEMPLATES = {"last": "[P*2] Review: {text} It was [P*2]", "mask": "[P*2] {text} [P] it was [MASK]"}


def run_of(name: str, model_of: Callable[[str], Path], rows_file: Path, folder: Path) -> Run:
    read = "last" if name in ("llama", "qwen3", "gpt2") else "mask"
    return Run.read(train_tiny(model_of(name), rows_file, TEMPLATES[read], folder))


@pytest.mark.parametrize("opset", sample([18, 23], 23))
@pytest.mark.parametrize("name", STOPS)
def test_only_keys_and_values_take_every_position(
    name: str, opset: int, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    run = run_of(name, model_of, rows_file, tmp_path / "run")
    backbone = load_backbone_of(run.config, Path())
    traced = trace(backbone, run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=opset)
    read = ReadPositionPass()
    (tmp_path / "graph").mkdir()
    bake(JointTasks({"task": run}), traced, tmp_path / "graph", [read, *pipeline(JointTasks({"task": run}))[1:]])
    assert read.moved >= (14 if opset == 23 else 20)
    assert set(read.stopped) - {"Or", "And", "Expand"} <= STOPS[name]
    parity = check_parity(run, backbone, tmp_path / "graph")
    fail_on_difference("task", parity)
    if opset == 18:
        assert not_for_tensorrt(ir.load(tmp_path / "graph" / "model.onnx")) == []
    check_counts(name, ir.load(tmp_path / "graph" / "model.onnx"), run, backbone.model)


def check_counts(name: str, graph: ir.Model, run: Run, model: torch.nn.Module) -> None:
    """What is counted in a graph of no telling names, against what torch calls the same parameters."""
    matrices, all_of = Counter[str](), Counter[str]()
    for parameter, values in model.named_parameters():
        if re.search(r"\.\d+\.", parameter) and not re.search(r"norm|ln_", parameter, re.IGNORECASE):
            part = "attention" if re.search(r"attn|attention", parameter) else "mlp"
            all_of[part] += values.numel()
            # ALBERT's two layers are one, used twice.
            matrices[part] += values.numel() * (values.ndim == 2) * (2 if name == "albert" else 1)
    length, folded = 9, run.config.n_folded
    summary = summarize_graph(graph, length)
    found, flops = Counter[str](), Counter[str]()
    for entry in summary.parts:
        found[entry.name] += entry.parameters
        flops[entry.name] += entry.flops
    assert (summary.layers, {part: found[part] for part in all_of}) == (2, dict(all_of))
    width = 64 if name == "qwen3" else 32
    scores = 2 * 2 * length * (length + folded) * 2 * width
    assert summary.saved_flops is not None
    assert flops["attention"] + flops["mlp"] + summary.saved_flops == 2 * length * matrices.total() + scores
    assert flops["label weights"] == 2 * run.arrays.label_weights.size


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
def test_the_last_layer_takes_one_position(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Asked of ONNX Runtime: the last product as wide as the MLP has one row a text."""
    run = Run.read(request.getfixturevalue(fixture))
    traced = trace(
        load_backbone_of(run.config, Path()), run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=18
    )
    shapes = {}
    for name, passes in (
        ("all", pipeline(JointTasks({"task": run}))[1:]),
        ("one", pipeline(JointTasks({"task": run}))),
    ):
        folder = tmp_path / name
        folder.mkdir()
        bake(JointTasks({"task": run}), traced, folder, passes)
        model = ir.load(folder / "model.onnx")
        wide = [node for node in model.graph if node.op_type == "MatMul" and _columns(node) == 48][-1]
        model.graph.outputs.append(wide.outputs[0])
        wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([None, None, None])
        ir.save(model, folder / "model.onnx")
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        ids = {value.name: np.ones((3, 9), dtype=np.int64) for value in session.get_inputs()}
        if fixture == "bert_run":
            ids["token_type_ids"][:] = 0
        shapes[name] = session.run(None, ids)[-1].shape
    assert shapes == {"all": (3, 9, 48), "one": (3, 1, 48)}


def _columns(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    return None if weight is None or weight.const_value is None else int(weight.const_value.shape[1])


class OnePositionEarlier(ReadPositionPass):
    """Wrong on purpose: what it takes of all but the states is one position too early."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        done = super().call(model)
        (first, *_) = [node for node in model.graph if node.op_type == "GatherND"]
        index = first.inputs[1]
        one = ir.Value(name="one", const_value=ir.tensor(np.array(1, dtype=np.int64), name="one"))
        model.graph.register_initializer(one)
        earlier = ir.node("Sub", [index, one])
        earlier.outputs[0].name = "one_earlier"
        model.graph.insert_before(first, earlier)
        first.replace_input_with(1, earlier.outputs[0])
        return done


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
def test_control_one_position_earlier_is_seen(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    backbone = load_backbone_of(run.config, Path())
    traced = trace(backbone, run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=18)
    bake(JointTasks({"task": run}), traced, tmp_path, [OnePositionEarlier(), *pipeline(JointTasks({"task": run}))[1:]])
    parity = check_parity(run, backbone, tmp_path)
    with pytest.raises(ExportError, match="no bundle was written"):
        fail_on_difference("task", parity)


def test_the_manifest_says_what_each_pass_did(llama_run: Path, tmp_path: Path) -> None:
    run = Run.read(llama_run)
    traced = trace(load_backbone_of(run.config, Path()), "last", has_prefix_kv=True, opset=18)
    done = bake(JointTasks({"task": run}), traced, tmp_path).passes
    names = [entry.name for entry in done]
    assert (names[0], names[-3:]) == ("ReadPosition", ["BindInputs", "DeadCode", "ForgetIntermediateShapes"])
    assert "nodes compute the read position alone" in done[0].did
    assert "prefix_kv" in done[-3].did


def test_a_graph_that_reads_no_position_is_refused(bert_run: Path) -> None:
    run = Run.read(bert_run)
    traced = trace(load_backbone_of(run.config, Path()), "mean", has_prefix_kv=False, opset=18)
    with pytest.raises(ir.passes.PreconditionError, match="gathers no position"):
        ReadPositionPass()(ir.load(traced.path / "model.onnx"))
