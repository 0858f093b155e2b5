"""Rewrites of a traced graph: the same numbers as without them, what ONNX Runtime makes of them, and controls."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from baked import check_parity
from numpy.typing import NDArray

from ptexport.exporters.bake import bake, pipeline
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import fail_on_difference
from ptexport.exporters.passes import ort_rewrites
from ptexport.exporters.passes.edit import Edit
from ptexport.exporters.passes.ort_rewrites import (
    FiniteMaskPass,
    FixedSizesPass,
    GeluPass,
    KeyTransposePass,
    RootMeanSquarePass,
    rewrites,
)
from ptexport.exporters.trace.cached import Trace
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

# How often each finds its kind in two layers: of Reshapes, heads apart three times and together once a layer, less two
# that the read position's queries and output need; of Llama also keys and values for all heads.
REWRITTEN = {
    "llama_run": {"FiniteMask": 2, "KeyTranspose": 2, "FixedSizes": 10, "Gelu": 0, "RootMeanSquare": 5},
    "bert_run": {"FiniteMask": 2, "KeyTranspose": 2, "FixedSizes": 6, "Gelu": 3, "RootMeanSquare": 0},
}
FUSED = {"llama_run": {"SimplifiedLayerNormalization": 5}, "bert_run": {"BiasGelu": 3}}


def traced_of(run: Run) -> Trace:
    return trace(
        load_backbone_of(run.config, Path()), run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=18
    )


def baked(run: Run, folder: Path, passes: list[Edit]) -> Path:
    first, *rest = pipeline(JointTasks({"task": run}))
    folder.mkdir()
    bake(JointTasks({"task": run}), traced_of(run), folder, [first, *passes, *rest[len(rewrites()) :]])
    return folder


def logits(folder: Path) -> NDArray[np.float32]:
    """Answer rows padded on either side, node by node: what is fused may round in another way."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    ids = np.random.default_rng(0).integers(5, 30, size=(3, 9))
    mask = np.ones_like(ids)
    mask[1, :4], mask[2, 6:] = 0, 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found: NDArray[np.float32] = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})[0]
    return found


@pytest.mark.parametrize("fixture", REWRITTEN)
def test_each_gives_the_same_numbers(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    expected = logits(baked(run, tmp_path / "as-traced", []))
    found = {}
    for rewrite in rewrites():
        name = type(rewrite).__name__.removesuffix("Pass")
        got = logits(baked(run, tmp_path / name, [rewrite]))
        found[name] = int(rewrite.did.split()[0])
        if name == "RootMeanSquare":
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, expected)
    assert found == REWRITTEN[fixture]


@pytest.mark.parametrize("fixture", FUSED)
def test_onnxruntime_fuses_what_they_leave(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    operators = {}
    for name, passes in (("as-traced", []), ("rewritten", rewrites())):
        folder = baked(run, tmp_path / name, passes)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "fused.onnx")
        onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(folder / "fused.onnx", load_external_data=False).graph
        operators[name] = Counter(node.op_type for node in graph.node)
    assert not operators["as-traced"].keys() & FUSED[fixture].keys()
    assert {kind: operators["rewritten"][kind] for kind in FUSED[fixture]} == FUSED[fixture]
    assert operators["rewritten"]["IsNaN"] == 0 < operators["as-traced"]["IsNaN"]
    assert operators["rewritten"]["Transpose"] == operators["as-traced"]["Transpose"] - 2


class ShallowMask(FiniteMaskPass):
    """Wrong on purpose: masked keys are seen a little."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        done = super().call(model)
        model.graph.initializers["mask.lowest"].const_value = ir.tensor(np.float32(-1), name="mask.lowest")
        return done


class SwappedSizes(FixedSizesPass):
    """Wrong on purpose: as many heads in the first layer as a head is wide."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        reshapes = [node.outputs[0] for node in model.graph if node.op_type == "Reshape"]
        for value in [value for value in reshapes if value.shape is not None and len(value.shape) == 4][:3]:
            assert value.shape is not None
            batch, sequence, heads, width = value.shape
            value.shape = ir.Shape([batch, sequence, width, heads])
        return super().call(model)


class AnyFactor(GeluPass):
    """Wrong on purpose: quarters in place of halves."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        done = super().call(model)
        for node in model.graph:
            if str(node.inputs[0].name if node.inputs and node.inputs[0] else "").endswith(".whole"):
                quarter = ort_rewrites.constant(model.graph, f"quarter.{node.name}", np.float32(0.25))
                node.replace_input_with(1, quarter)
        return done


class SquaredRoot(RootMeanSquarePass):
    """Wrong on purpose: divides by the mean of squares itself."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        done = super().call(model)
        for node in model.graph:
            root = node.inputs[1].producer() if node.op_type == "Div" and node.inputs[1] is not None else None
            if root is not None and root.op_type == "Sqrt":
                node.replace_input_with(1, root.inputs[0])
        return done


@pytest.mark.parametrize(
    ("fixture", "wrong"),
    [
        ("bert_run", ShallowMask()),
        ("bert_run", SwappedSizes()),
        ("bert_run", AnyFactor()),
        ("llama_run", SquaredRoot()),
    ],
)
def test_control_a_wrong_one_is_seen(fixture: str, wrong: Edit, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    folder = baked(run, tmp_path / "wrong", [wrong])
    backbone = load_backbone_of(run.config, Path())
    parity = check_parity(run, backbone, folder)
    with pytest.raises(ExportError, match="no bundle was written"):
        fail_on_difference("task", parity)


def test_control_keys_that_are_laid_out_anew_are_left(bert_run: Path) -> None:
    """Two Reshapes around a swap are a Transpose only if the second puts the axes where they were, swapped."""
    graph = ir.load(traced_of(Run.read(bert_run)).path / "model.onnx")
    swaps = [
        node for node in graph.graph if node.op_type == "Transpose" and len(node.attributes["perm"].as_ints()) == 3
    ]
    for swap in swaps:
        ((reshape, _),) = swap.outputs[0].uses()
        sizes = reshape.inputs[1]
        concat = None if sizes is None else sizes.producer()
        assert concat is not None
        _, second, third = concat.inputs
        concat.replace_input_with(1, third)
        concat.replace_input_with(2, second)
    left = KeyTransposePass()
    left(graph)
    assert (len(swaps), left.rewritten) == (2, 0)
