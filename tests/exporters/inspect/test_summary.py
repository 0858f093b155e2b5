"""What inspect says of a graph, against figures counted by hand from the tiny models' sizes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from ptexport.exporters.bake import bake, pipeline
from ptexport.exporters.inspect.summary import GraphSummary, summarize_graph
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.passes.edit import Edit
from ptexport.exporters.precision.quantize import find_products
from ptexport.exporters.precision.row_pass import RowProductsPass
from ptexport.exporters.trace.trace import trace
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

HIDDEN, MLP, KV = 32, 48, 16  # tests/tiny.py; two layers, two key-value heads of four in Llama
LENGTH = 10


def summarize(folder: Path) -> GraphSummary:
    return summarize_graph(ir.load(folder / "model.onnx"), LENGTH)


def flops(summary: GraphSummary) -> dict[tuple[str, int | None], int]:
    return {(part.name, part.layer): part.flops for part in summary.parts if part.flops}


def parameters(summary: GraphSummary) -> dict[tuple[str, int | None], int]:
    return {(part.name, part.layer): part.parameters for part in summary.parts if part.name != "other"}


def llama_flops(folded: int) -> dict[tuple[str, int | None], int]:
    """Products of [10, k] by [k, n], twice k a number; in the last layer of one position but for keys and values."""
    keys = LENGTH + folded
    return {
        ("attention", 0): 2 * LENGTH * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 2 * keys * HIDDEN),
        ("mlp", 0): 2 * LENGTH * 3 * HIDDEN * MLP,
        ("attention", 1): 2 * LENGTH * 2 * HIDDEN * KV + 2 * (2 * HIDDEN * HIDDEN + 2 * keys * HIDDEN),
        ("mlp", 1): 2 * 3 * HIDDEN * MLP,
        ("label weights", None): 2 * HIDDEN * 2,
    }


def baked(run: Run, folder: Path, *, opset: int = 18, passes: Sequence[Edit] | None = None) -> Path:
    folder.mkdir()
    backbone = load_backbone_of(run.config, Path())
    bake(
        JointTasks({"task": run}),
        trace(backbone, run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=opset),
        folder,
        passes,
    )
    return folder


def test_a_causal_graph(llama_bundle: Path, llama_run: Path) -> None:
    run = Run.read(llama_run)
    folded = run.config.n_folded
    summary = summarize(llama_bundle)
    assert summary.inputs == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    assert list(summary.outputs) == ["logits"]
    assert (summary.layers, summary.length, summary.unknown) == (2, LENGTH, [])
    assert summary.operators["Softmax"] == 2
    assert summary.operators["MatMul"] == 7 * 2 + 2 * 2 + 1
    assert flops(summary) == llama_flops(folded)
    assert summary.flops == sum(llama_flops(folded).values())
    assert summary.flops_per_token == summary.flops / LENGTH
    assert summary.score_flops == 2 * (LENGTH + 1) * 2 * (LENGTH + folded) * HIDDEN
    layer = {"attention": 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV, "mlp": 3 * HIDDEN * MLP, "norms": 2 * HIDDEN}
    assert parameters(summary) == {
        ("embeddings", None): run.config.backbone.vocab * HIDDEN,
        ("prompt embeddings", None): 4 * HIDDEN,
        ("prefix key/values", None): 2 * 2 * folded * KV,
        **{(name, i): n for i in range(2) for name, n in layer.items()},
        ("norms", None): HIDDEN,
        ("label weights", None): 2 * HIDDEN + 2,
    }
    assert all(part.size_bytes == 4 * part.parameters for part in summary.parts if part.name != "other")
    data = (llama_bundle / "model.onnx.data").stat().st_size + (llama_bundle / "model.onnx").stat().st_size
    assert sum(part.size_bytes for part in summary.parts) < data


def test_a_masked_graph(bert_bundle: Path) -> None:
    summary = summarize(bert_bundle)
    attention, mlp = 4 * (HIDDEN * HIDDEN + HIDDEN), 2 * HIDDEN * MLP + HIDDEN + MLP
    found = parameters(summary)
    assert [found[name, i] for name in ("attention", "mlp") for i in range(2)] == [attention] * 2 + [mlp] * 2
    assert found["head", None] == HIDDEN * HIDDEN + HIDDEN, "the transform before the label words' rows"
    assert flops(summary) == {
        ("attention", 0): 2 * LENGTH * (4 * HIDDEN * HIDDEN + 2 * LENGTH * HIDDEN),
        ("mlp", 0): 2 * LENGTH * 2 * HIDDEN * MLP,
        ("attention", 1): 2 * LENGTH * 2 * HIDDEN * HIDDEN + 2 * (2 * HIDDEN * HIDDEN + 2 * LENGTH * HIDDEN),
        ("mlp", 1): 2 * 2 * HIDDEN * MLP,
        ("head", None): 2 * HIDDEN * HIDDEN,
        ("label weights", None): 2 * HIDDEN * 2,
    }


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
def test_what_the_read_position_saves_is_what_the_graph_without_it_takes(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    one = summarize(baked(run, tmp_path / "one"))
    every = summarize(baked(run, tmp_path / "every", passes=pipeline(JointTasks({"task": run}))[1:]))
    assert every.saved_flops == 0
    assert one.saved_flops
    assert every.flops == one.flops + one.saved_flops if one.flops else False


@pytest.fixture
def graph(llama_bundle: Path) -> ir.Model:
    return ir.load(llama_bundle / "model.onnx")


def test_packed_weights(graph: ir.Model, llama_bundle: Path) -> None:
    """Four bits a number, in blocks of 16 with a scale each, by ONNX Runtime's own quantizer."""
    ir.external_data.load_to_model(graph)
    quantizer = MatMulNBitsQuantizer(ir.to_proto(graph), bits=4, block_size=16, is_symmetric=True)
    quantizer.process()
    packed = ir.from_proto(quantizer.model.model)
    assert {node.op_type for node in packed.graph if node.domain == "com.microsoft"} == {"MatMulNBits"}
    summary, plain = summarize_graph(packed, LENGTH), summarize(llama_bundle)
    assert (flops(summary), summary.saved_flops) == (flops(plain), plain.saved_flops)
    scales = {"attention": (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV) // 16, "mlp": 3 * HIDDEN * MLP // 16}
    for name, n_scales in scales.items():
        (part,) = [part for part in summary.parts if (part.name, part.layer) == (name, 0)]
        weights = parameters(plain)[name, 0]
        assert part.parameters == weights + n_scales
        assert part.size_bytes == weights // 2 + 4 * n_scales


def test_products_row_by_row(graph: ir.Model, llama_bundle: Path) -> None:
    ir.external_data.load_to_model(graph)
    RowProductsPass([product.node for product in find_products(graph)])(graph)
    summary, plain = summarize_graph(graph, LENGTH), summarize(llama_bundle)
    assert (flops(summary), summary.saved_flops) == (flops(plain), plain.saved_flops)
    columns = {"attention": 2 * HIDDEN + 2 * KV, "mlp": 2 * MLP + HIDDEN}
    for name, n_columns in columns.items():
        (part,) = [part for part in summary.parts if (part.name, part.layer) == (name, 0)]
        assert part.parameters == parameters(plain)[name, 0] + n_columns, (
            "the sums count as norms, which they scale like"
        )
        assert part.size_bytes == parameters(plain)[name, 0] + 4 * n_columns


def test_quantized_weights(graph: ir.Model, llama_bundle: Path) -> None:
    """One byte a number behind a DequantizeLinear, as static quantization writes it."""
    for node in [node for node in graph.graph if node.op_type == "MatMul"]:
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer():
            continue
        made = []
        for name, array in (("int8", np.ones(list(weight.shape or ()), np.int8)), ("scale", np.array(0.1, np.float32))):
            tensor = ir.tensor(array, name=f"{weight.name}_{name}")
            value = ir.Value(name=tensor.name, shape=tensor.shape, const_value=tensor)
            value.dtype = tensor.dtype
            graph.graph.register_initializer(value)
            made.append(value)
        dequantized = ir.node("DequantizeLinear", made)
        dequantized.outputs[0].name, dequantized.outputs[0].dtype = f"{weight.name}_float", ir.DataType.FLOAT
        graph.graph.insert_before(node, dequantized)
        node.replace_input_with(1, dequantized.outputs[0])
    summary, plain = summarize_graph(graph, LENGTH), summarize(llama_bundle)
    assert flops(summary) == flops(plain)
    sizes = {(part.name, part.layer): part.size_bytes for part in summary.parts}
    assert sizes["mlp", 1] == parameters(plain)["mlp", 1] + 3 * 4
    assert sizes["attention", 0] == parameters(plain)["attention", 0] + 4 * 4


def test_a_node_of_unknown_sizes_is_named(graph: ir.Model) -> None:
    (first, *_) = [node for node in graph.graph if node.op_type == "Sigmoid"]
    first.domain, first.op_type = "com.microsoft", "Mystery"
    summary = summarize_graph(graph, LENGTH)
    assert (summary.flops, summary.flops_per_token, summary.saved_flops) == (None, None, None)
    assert summary.unknown == ["com.microsoft::Mystery"]
    assert parameters(summary)["mlp", 1] == 3 * HIDDEN * MLP
