"""Lower precisions on tiny models: against the untouched model, batch by batch, with controls; what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from baked import bake_run
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import quantize_dynamic
from tiny import Quiet, save_model, train_tiny, worst

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.parity.reference import expected_logits, golden_rows
from ptexport.exporters.parity.texts import texts_to_check
from ptexport.exporters.precision.half_pass import HalfPass
from ptexport.exporters.precision.lower import LabelledRows, lower
from ptexport.exporters.precision.quantize import ByteTablePass
from ptexport.exporters.precision.recipes import not_tame, plans
from ptexport.exporters.precision.row_pass import RowProductsPass
from ptexport.exporters.targets.tensorrt import not_for_tensorrt
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.measured import GoldenRow
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import DataError, ExportError, ProviderError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.io_binding import Ids
from ptexport.toolkit.evaluation.describe import describe
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

ANY_DROP = 100.0
NORMS = {"ReduceMean", "LayerNormalization", "RMSNormalization"}


@pytest.fixture(scope="session", params=["llama", "gpt2", "bert"])
def run_folder(
    request: pytest.FixtureRequest,
    model_of: Callable[[str], Path],
    rows_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param in ("llama", "bert"):
        folder: Path = request.getfixturevalue(f"{request.param}_run")
        return folder
    template = "[P*2] Review: {text} It was [P*2]"
    return train_tiny(model_of("gpt2"), rows_file, template, tmp_path_factory.mktemp("runs") / "gpt2-run")


def exported(run: Path, out: Path, **options: object) -> Manifest:
    return export(ExportConfig(runs=(run,), out=out, **options), Quiet())  # type: ignore[arg-type]


def check_words(bundle: Path, run: Path) -> None:
    """What `inspect` reads off the bundle's rows and table is what they were made of."""
    for got, need in zip(describe(bundle)["tasks"][0]["nearest_words"], describe(run)["nearest_words"], strict=True):
        np.testing.assert_allclose([cosine for _, cosine in got], [cosine for _, cosine in need], atol=0.01)


def operators(bundle: Path) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in ir.load(bundle / "model.onnx").graph}


def baked(run_folder: Path, folder: Path, *, opset: int = 18) -> Run:
    run = Run.read(run_folder)
    folder.mkdir()
    backbone = load_backbone_of(run.config, Path())
    bake_run(run, backbone, folder, opset=opset)
    return run


def rows_of(run: Run, folder: Path) -> LabelledRows:
    encoder = TextEncoder.from_json((folder / "tokenizer.json").read_text(), fields=["text"])
    labels = [run.config.labels.index(str(row.label)) for row in run.check_rows]
    return LabelledRows(encodings=encoder.encode([row.text for row in run.check_rows]), labels=np.array(labels))


@pytest.mark.parametrize("opset", [18, pytest.param(23, marks=pytest.mark.soak)])
def test_half_answers_nearly_alike_in_half_the_bytes(run_folder: Path, opset: int, tmp_path: Path) -> None:
    manifest = exported(run_folder, tmp_path / "fp16", precision="fp16", opset=opset)
    fp32 = exported(run_folder, tmp_path / "fp32", opset=opset)
    assert manifest.task.parity is not None
    assert 1e-5 < worst(manifest.task.parity) < 0.1, "not the same, and not another"
    sizes = [m.files["model.onnx.data"].size_bytes for m in (manifest, fp32)]
    assert sizes[0] < 0.62 * sizes[1]
    assert manifest.graph.precision == "fp16"
    assert manifest.graph.lowered is not None
    assert manifest.graph.lowered.accuracy is not None
    graph = ir.load(tmp_path / "fp16" / "model.onnx").graph
    kept, halved = (
        {node.op_type for node in graph if node.outputs[0].dtype == dtype}
        for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    )
    if opset == 18:
        assert "Softmax" in halved - kept
        assert not_for_tensorrt(ir.load(tmp_path / "fp16" / "model.onnx")) == []
    assert (kept if run_folder.name == "llama-run" and opset == 18 else halved) & NORMS
    check_words(tmp_path / "fp16", run_folder)


def test_what_is_too_large_for_half_stays_in_float32(rows_file: Path, tmp_path: Path) -> None:
    """A model whose MLPs give a million, as some checkpoints' massive activations do."""
    folder = save_model(tmp_path / "large", "llama")
    state = {name: tensor.clone() for name, tensor in _weights(folder).items()}
    for name, tensor in state.items():
        if "up_proj" in name or "gate_proj" in name:
            tensor *= 1e3
    _write_weights(folder, state)
    run_folder = train_tiny(folder, rows_file, "[P*2] Review: {text} It was [P*2]", tmp_path / "run")
    manifest = exported(run_folder, tmp_path / "fp16", precision="fp16", max_accuracy_drop=ANY_DROP)
    assert manifest.task.parity is not None
    assert worst(manifest.task.parity) < 0.1
    assert "stay float32 for their size" in next(p.did for p in manifest.graph.passes if p.name == "Half")
    run = baked(run_folder, tmp_path / "control")
    model = ir.load(tmp_path / "control" / "model.onnx")
    HalfPass(ir.DataType.FLOAT16)(model)
    ir.save(model, tmp_path / "control" / "model.onnx")
    ids = TextEncoder.pad(rows_of(run, tmp_path / "control").encodings[:1])
    with np.errstate(all="ignore"):  # ONNX Runtime's CPU computes in float32 between casts, where nothing overflows
        without, looked = (evaluated(onnx.load(tmp_path / name / "model.onnx"), ids) for name in ("control", "fp16"))
    assert np.isfinite(looked).all()
    assert not np.isfinite(without).all(), "the control: nobody looked"


def evaluated(model: onnx.ModelProto, ids: Ids) -> NDArray[np.float32]:
    """Ask onnx's own evaluator."""
    given = {value.name: ids[value.name] for value in model.graph.input if value.name in ids}
    logits: NDArray[np.float32] = ReferenceEvaluator(model).run(None, given)[0]
    return logits


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _write_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_golden_rows_that_are_rounded_most_pass_where_the_bundle_is_opened(
    llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that no check row is like, played by golden rows that are half a logit off."""

    def off(run: Run, backbone: Backbone) -> list[GoldenRow]:
        first, *rest = golden_rows(run, backbone)
        return [msgspec.structs.replace(first, logits={k: v + 0.5 for k, v in first.logits.items()}), *rest]

    monkeypatch.setattr("ptexport.exporters.parity.reference.golden_rows", off)
    manifest = exported(llama_run, tmp_path / "bundle", precision="fp16")
    seen = Engine.open(tmp_path / "bundle", provider="cpu").info.golden_max_abs_diff
    assert manifest.task.parity is not None
    assert seen == pytest.approx(0.5, abs=0.1)
    assert manifest.task.parity.tolerance == pytest.approx(2 * seen)


def test_bfloat16_is_written_and_said_not_to_be_run(run_folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime's CPU has no products in it; onnx's own evaluator has."""
    manifest = exported(run_folder, tmp_path / "bf16", precision="bf16", target="cuda")
    assert manifest.task.parity is None
    assert manifest.graph.lowered is not None
    assert manifest.graph.lowered.accuracy is None
    assert "Parity was not measured" in (tmp_path / "bf16" / "README.md").read_text()
    run = Run.read(run_folder)
    texts = texts_to_check(run, run.check_rows[:3])
    expected = expected_logits(run, load_backbone_of(run.config, Path()), texts, Quiet())
    encoder = TextEncoder.from_json((tmp_path / "bf16" / "tokenizer.json").read_text(), fields=["text"])
    model = onnx.load(tmp_path / "bf16" / "model.onnx")
    ids = [encoder.pad(encoder.encode([text])) for text in texts]
    got = np.concatenate([evaluated(model, row) for row in ids])
    zeroed = next(tensor for tensor in model.graph.initializer if tensor.name == "prompt_embeddings")
    zeroed.raw_data = bytes(len(zeroed.raw_data))
    control = np.concatenate([evaluated(model, row) for row in ids])
    differs, controls = (float(np.abs(logits - expected).mean()) for logits in (got, control))
    assert 1e-5 < differs < controls / 4
    check_words(tmp_path / "bf16", run_folder)
    with pytest.raises(ProviderError, match=r"provider CPUExec.*: cannot run this graph \(.*\); export it for the CPU"):
        Engine.open(tmp_path / "bf16", provider="cpu")


def test_int8_does_not_depend_on_neighbours(run_folder: Path, tmp_path: Path) -> None:
    differences = {}
    for precision in ("int8", "int4"):
        out = tmp_path / precision
        manifest = exported(run_folder, out, precision=precision, max_accuracy_drop=ANY_DROP)
        lowered = manifest.graph.lowered
        assert lowered is not None
        assert all("*" in role for role in lowered.costs if "layer" in role)
        assert list(lowered.costs.values()) == sorted(lowered.costs.values(), reverse=True)
        assert min(lowered.costs.values()) > 0
        assert manifest.task.parity is not None
        assert 1e-4 < worst(manifest.task.parity) < {"int8": 3, "int4": 30}[precision]
        differences[precision] = _apart(out, Run.read(run_folder))
    run = baked(run_folder, tmp_path / "dynamic")
    model = tmp_path / "dynamic" / "model.onnx"
    quantize_dynamic(model, model, extra_options={"MatMulConstBOnly": True})
    assert differences["int8"] < 1e-3
    assert differences["int4"] < 1e-3
    assert _apart(tmp_path / "dynamic", run) > 1e-2, "the control: ONNX Runtime's dynamic quantization"
    check_words(tmp_path / "int8", run_folder)


def _apart(folder: Path, run: Run) -> float:
    """The largest difference of a logit between rows in one batch and the same rows alone."""
    encoder = TextEncoder.from_json((folder / "tokenizer.json").read_text(), fields=["text"])
    encodings = encoder.encode([row.text for row in run.check_rows] * 10)[:60]
    graph = Graph.open(folder / "model.onnx")
    among = graph.run(encoder.pad(encodings))
    alone = np.concatenate([graph.run(encoder.pad([encoding])) for encoding in encodings])
    return float(np.abs(among - alone).max())


def test_int8_of_standard_operators(run_folder: Path, tmp_path: Path) -> None:
    run = baked(run_folder, tmp_path / "graph")
    rows = rows_of(run, tmp_path / "graph")
    lower(tmp_path / "graph", "int8", rows, keep_fp32=(), max_drop=ANY_DROP, standard=True)
    assert {domain for domain, _ in operators(tmp_path / "graph")} == {""}
    assert not_for_tensorrt(ir.load(tmp_path / "graph" / "model.onnx")) == []
    assert ("", "QuantizeLinear") in operators(tmp_path / "graph")
    assert sorted(path.name for path in (tmp_path / "graph").iterdir() if path.name.startswith((".", "model"))) == [
        "model.onnx",
        "model.onnx.data",
    ]


def test_too_much_lost_names_what_costs_most(llama_run: Path, tmp_path: Path) -> None:
    run = baked(llama_run, tmp_path / "graph")
    rows = rows_of(run, tmp_path / "graph")
    right = LabelledRows(encodings=rows.encodings, labels=np.full(len(rows.labels), -1))
    with pytest.raises(
        ExportError, match=r"int4: accuracy on \d+ rows falls from 100\.0% to .*costs most .*: base\.layers"
    ):
        lower(tmp_path / "graph", "int4", right, keep_fp32=(), max_drop=-0.5, standard=False)


def test_products_are_kept_by_name_or_until_it_is_right(llama_run: Path, tmp_path: Path) -> None:
    named = exported(
        llama_run, tmp_path / "named", precision="int4", keep_fp32=["base.layers.1.mlp*"], max_accuracy_drop=ANY_DROP
    )
    assert named.graph.lowered is not None
    assert {name.rsplit(".", 2)[1] for name in named.graph.lowered.kept_fp32} == {"up_proj", "gate_proj", "down_proj"}
    assert named.graph.lowered.products == {"int4-blocks": 11, "fp32": 3}
    with pytest.raises(
        ExportError, match="keep-fp32 'layers': matches no weight, need a name, or a pattern such as base"
    ):
        exported(llama_run, tmp_path / "unknown", precision="int4", keep_fp32=["layers"])
    assert not (tmp_path / "unknown").exists()


def test_auto_keeps_the_costliest_roles_until_it_is_right(llama_run: Path, tmp_path: Path) -> None:
    run = baked(llama_run, tmp_path / "graph")
    words = [token for token in run.config.compile(run.tokenizer_json).tokenizer_json().split('"') if token.isalpha()]
    encoder = TextEncoder.from_json((tmp_path / "graph" / "tokenizer.json").read_text(), fields=["text"])
    rows = LabelledRows(encodings=encoder.encode(words[:300]), labels=np.full(300, -1))
    lowered = lower(tmp_path / "graph", "int4", rows, keep_fp32="auto", max_drop=2.0, standard=False).entry
    assert lowered.accuracy is not None
    assert lowered.accuracy >= 0.98
    roles = {re.sub(r"\d+", "*", weight) for weight in lowered.kept_fp32}
    assert roles == set(list(lowered.costs)[: len(roles)]) != set(lowered.costs)
    assert roles, "the control: int4 alone answers otherwise"


def test_no_numbers_are_refused(llama_run: Path, tmp_path: Path) -> None:
    run = baked(llama_run, tmp_path / "graph")
    model = ir.load(tmp_path / "graph" / "model.onnx")
    bias = np.array([np.nan, 0], dtype=np.float32)
    model.graph.initializers["label_bias"].const_value = ir.tensor(bias, name="label_bias")
    ir.save(model, tmp_path / "graph" / "model.onnx")
    with pytest.raises(ExportError, match=r"row \d+: a logit is not a finite number"):
        rows_of(run, tmp_path / "graph").predict(tmp_path / "graph" / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16", "keep_fp32": "auto"}, "keep-fp32: goes with int8 or int4, got fp16"),
        ({"precision": "int8", "autotune": True}, "tune: times graphs in fp32, got int8"),
        ({"precision": "bf16"}, "target cpu: got precision bf16, need one of fp32, int8"),
        ({"precision": "int4", "target": "tensorrt"}, "target tensorrt: got precision int4, need one of fp32, fp16"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], message: str, llama_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        exported(llama_run, tmp_path / "out", **options)


def test_a_label_that_the_run_does_not_have_is_refused(llama_run: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nthe film was bright,pos\n")
    with pytest.raises(DataError, match="got label 'pos', need one of"):
        exported(llama_run, tmp_path / "out", precision="int8", rows=tmp_path / "rows.csv")


def test_a_role_that_costs_more_than_the_rest_is_not_tame() -> None:
    assert not_tame({"down": 3.0, "up": 0.5, "gate": 0.4, "query": 0.4}) == ["down"]
    assert not_tame({"a": 1.0, "b": 1.0, "c": 0.9}) == []
    assert not_tame({"a": 9.0, "b": 3.0, "c": 1.0}) == ["a", "b"], "the cheapest always is"


def test_the_ways_to_int8_come_nearer_to_float32() -> None:
    costs = {"down": 3.0, "up": 0.45, "query": 0.4, "key": 0.4}
    ways = plans("int8", costs, standard=False)
    assert [sorted(set(way.values())) for way in ways] == [["row"], ["int8-blocks", "row"], ["int8-blocks"]]
    assert ways[1] == {"down": "int8-blocks", "up": "int8-blocks", "query": "row", "key": "row"}
    assert plans("int8", costs, standard=True) == [{"down": "fp32", "up": "range", "query": "range", "key": "range"}]
    assert plans("int4", costs, standard=False) == [dict.fromkeys(costs, "int4-blocks")]


def test_products_row_by_row_are_what_their_integers_say() -> None:
    """Against numpy, row by row: steps of a row's own range, columns of a weight's own largest element."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 24)).astype(np.float32)
    weight[:, 3] = 0
    rows = random.normal(size=(2, 3, 40)).astype(np.float32) * np.array([[1e-3], [1], [1e4]], dtype=np.float32)
    rows[0, 1] = 7.5  # all alike: no range at all
    model = _two_products(weight)
    RowProductsPass(["first", "second"])(model)
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count("QuantizeLinear"), kinds.count("MatMulIntegerToFloat")) == (1, 2), "rounded once"
    assert set(model.graph.initializers) & {"w", "w.int8", "w.step", "w.sum"} == {"w.int8", "w.step", "w.sum"}
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = session.run(None, {"x": rows})
    np.testing.assert_array_equal(first, second)
    step = np.where(np.abs(weight).max(0) == 0, 1, np.abs(weight).max(0) / 127)
    columns = np.round(weight / step) * step
    middle = (rows.max(-1, keepdims=True) + rows.min(-1, keepdims=True)) / 2
    span = np.maximum(rows.max(-1, keepdims=True) - rows.min(-1, keepdims=True), 1e-30) / 254
    rounded = np.clip(np.round((rows - middle) / span), -128, 127)
    expected = (rounded * span + middle) @ columns
    np.testing.assert_allclose(first, expected, rtol=2e-5, atol=1e-4 * np.abs(rows).max(-1, keepdims=True).max())
    for row in np.ndindex(2, 3):
        (alone, _) = session.run(None, {"x": rows[row][None, None]})
        np.testing.assert_array_equal(alone[0, 0], first[row])
    error = np.abs(first - rows @ weight).max(-1) / np.abs(rows).max(-1)
    assert 1e-3 < error.max() < 0.2
    with pytest.raises(ir.passes.PreconditionError, match=r"no products: \['first'"):
        RowProductsPass(["first"])(model)


def _two_products(weight: NDArray[np.float32]) -> ir.Model:
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["b", "s", weight.shape[0]]))
    nodes = [ir.node("MatMul", [x, value], name=name) for name in ("first", "second")]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].dtype = f"{node.name}.out", ir.DataType.FLOAT
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[value], opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


def test_tasks_share_their_weights_in_lower_precision(
    llama_run: Path, llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    other = train_tiny(llama, rows_file, "{text} [P*3]", tmp_path / "other")
    for precision in ("fp16", "int8", "int4"):
        files = [
            exported(run, tmp_path / f"{precision}-{n}", precision=precision, max_accuracy_drop=ANY_DROP).files
            for n, run in enumerate((llama_run, other))
        ]
        assert files[0]["model.onnx.data"] == files[1]["model.onnx.data"]
        assert files[0]["model.onnx"] != files[1]["model.onnx"]


@pytest.mark.parametrize("width", [32, 40])
def test_the_table_in_int8(width: int) -> None:
    table = np.random.default_rng(0).normal(size=(50, width)).astype(np.float32)
    table[3] = 0
    weight = ir.Value(name="table.weight", const_value=ir.tensor(table, name="table.weight"))
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2, 3]))
    node = ir.node("Gather", [weight, ids])
    node.outputs[0].name, node.outputs[0].dtype = "rows", ir.DataType.FLOAT
    graph = ir.Graph([ids], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    edit = ByteTablePass()
    edit(model)
    wanted = np.array([[0, 3, 49], [7, 7, 1]])
    (got,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"ids": wanted})
    block = width if width == 40 else 32
    bound = np.abs(table.reshape(50, -1, block)).max(2).repeat(block, 1)[wanted] / 254 + 1e-6
    assert (np.abs(got - table[wanted]) <= bound).all()
    assert edit.did == "embedding table of 50 rows in int8"
    with pytest.raises(ir.passes.PreconditionError, match=r"looks up in table\.weight"):
        edit(model)
