"""Joined products and signed sines compute what the fp32 graph does; with controls that do not."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from ptexport.exporters.passes.cleanup import DeadCodePass
from ptexport.exporters.precision.fewer_kernels import JoinProductsPass, RotationSignPass

Graph = tuple[ir.Model, NDArray[np.float32]]


def read(bundle: Path, folder: Path, *passes: ir.passes.InPlacePass, drop: str | None = None) -> Graph:
    """Apply passes to a bundle's graph, and run it; `drop`: take the nodes of this operator out of it."""
    model = ir.load(bundle / "model.onnx")
    for pass_ in passes:
        pass_(model)
    for node in [node for node in model.graph if node.op_type == drop]:
        assert node.inputs[0] is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        model.graph.remove(node, safe=True)
    folder.mkdir()
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    ids = np.random.default_rng(0).integers(1, 60, (3, 9))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    given["attention_mask"][1, 5:] = 0
    inputs = [value.name for value in session.get_inputs()]
    logits: NDArray[np.float32] = session.run(["logits"], {name: given[name] for name in inputs})[0]
    return model, logits


@pytest.mark.parametrize(("bundle", "joined"), [("llama_bundle", 3), ("bert_bundle", 5)])
def test_joined_products_are_the_products(
    bundle: str, joined: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Queries, keys and values of the first layer, and BERT's keys and values of the last, whose bias counts."""
    path, join = request.getfixturevalue(bundle), JoinProductsPass()
    before, expected = read(path, tmp_path / "before")
    after, got = read(path, tmp_path / "after", join)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert join.joined == joined
    kinds = [Counter(node.op_type for node in model.graph) for model in (before, after)]
    assert kinds[1]["MatMul"] + kinds[1]["Split"] + kinds[1]["Add"] < kinds[0]["MatMul"] + kinds[0]["Add"]


def test_a_product_that_half_precision_cannot_hold_stays_apart(llama_bundle: Path, tmp_path: Path) -> None:
    model = ir.load(llama_bundle / "model.onnx")
    (large, *_) = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()]
    join = JoinProductsPass([str(large.outputs[0].name)])
    join(model)
    assert join.joined == 0, "two are left of three, which saves nothing"


def test_a_signed_sine_rotates_as_before(llama_bundle: Path, tmp_path: Path) -> None:
    before, expected = read(llama_bundle, tmp_path / "before")
    after, got = read(llama_bundle, tmp_path / "after", RotationSignPass(), DeadCodePass())
    np.testing.assert_array_equal(got, expected)
    assert [sum(node.op_type == "Neg" for node in model.graph) for model in (before, after)] == [4, 1]
    _, wrong = read(llama_bundle, tmp_path / "control", RotationSignPass(), DeadCodePass(), drop="Neg")
    assert np.abs(wrong - expected).max() > 1e-3, "the control: the angle is not negated"
