"""The graph against the oracle, and controls that must fail: a parity test that cannot fail proves nothing."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from baked import bake_run, check_parity
from safetensors.numpy import load_file, save_file
from tiny import Quiet, train_tiny, worst

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.parity.compare import fail_on_difference
from ptexport.exporters.trace.cached import Trace, trace_key
from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.measured import Comparison, Parity
from ptexport.runtime.errors import DataError, ExportError, RunError
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

PAIRS = "text,text_b,label\n" + "".join(
    f"the film was {word},it is {word} and {other},{label}\n"
    for word, label in (("bright", "positive"), ("dull", "negative"))
    for other in ("fast", "slow", "very slow", "very bright", "a review", "a story", "great", "bad", "good", "dull")
)


def load(run: Run) -> Backbone:
    return load_backbone_of(run.config, Path())


def parity_of(run: Run, baked: Run, backbone: Backbone, folder: Path, *, opset: int = 18) -> Parity:
    """Bake one run and compare it with the oracle of another: the same one, but for controls."""
    folder.mkdir()
    bake_run(baked, backbone, folder, opset=opset)
    return check_parity(run, backbone, folder)


@pytest.mark.parametrize(
    ("model", "template", "options", "read"),
    [
        ("llama", "{text} [P*2]", {}, "last"),
        ("llama", "[BOS] [P] {text}", {"encoder": "none", "init": "words"}, "last"),
        ("llama", "[P*2] {text}", {"labels": "positive,negative", "head": "linear", "encoder": "mlp"}, "last"),
        ("mistral", "[P*3] {text} [P]", {"max_length": 24}, "last"),
        ("bert", "[P] {text} [P*2]", {"labels": "positive,negative", "head": "linear"}, "mean"),
        ("bert", "[P] {text}", {"labels": "positive,negative", "head": "linear", "pool": "first"}, "first"),
        ("roberta", "[P*2] {text} It was [MASK] [P]", {}, "mask"),
    ],
)
def test_every_kind_of_graph_answers_as_the_model_does(
    model: str,
    template: str,
    options: dict[str, object],
    read: str,
    rows_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    run_folder = train_tiny(request.getfixturevalue(model), rows_file, template, tmp_path / "run", **options)
    manifest = export(ExportConfig(runs=(run_folder,), out=tmp_path / "bundle", target="tensorrt"), Quiet())
    assert manifest.graph.pooling == read
    assert worst(manifest.task.parity) < 1e-4
    assert manifest.task.parity.rows == len(Run.read(run_folder).check_rows) + 3


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
@pytest.mark.parametrize("opset", [18, 23])
def test_both_opsets(fixture: str, opset: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    assert worst(parity_of(run, run, load(run), tmp_path / "graph", opset=opset)) < 1e-4


def test_pairs_with_token_types(bert: Path, tmp_path: Path) -> None:
    rows = tmp_path / "pairs.csv"
    rows.write_text(PAIRS, encoding="utf-8")
    run_folder = train_tiny(bert, rows, "[CLS] [P] {text} [SEP] {text_b} [P] [MASK] [SEP]", tmp_path / "run")
    run = Run.read(run_folder)
    assert worst(parity_of(run, run, load(run), tmp_path / "graph")) < 1e-4


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
def test_control_a_zeroed_prompt_row_is_seen(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    rows = run.arrays.prompt_embeddings.copy()
    rows[2] = 0
    zeroed = dataclasses.replace(run, arrays=dataclasses.replace(run.arrays, prompt_embeddings=rows))
    parity = parity_of(run, zeroed, load(run), tmp_path / "graph")
    assert worst(parity) > 10 * parity.tolerance
    with pytest.raises(ExportError, match=r"largest difference .* no bundle was written"):
        fail_on_difference("task", parity)


class OffByOne(Backbone):
    """A backbone whose positions start one too late."""

    def classifier(self, pooling: Pooling) -> PromptClassifier:
        classifier = PromptClassifier(self.model, pooling).eval()
        classifier.first_position += 1
        return classifier


@pytest.mark.parametrize("fixture", ["llama_run", "bert_run"])
def test_control_positions_off_by_one_are_seen(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = Run.read(request.getfixturevalue(fixture))
    backbone = load(run)
    facts = msgspec.structs.replace(backbone.facts, fingerprint="off by one")
    wrong = OffByOne(model=backbone.model, head=backbone.head, tokenizer_json=backbone.tokenizer_json, facts=facts)
    run = dataclasses.replace(run, config=msgspec.structs.replace(run.config, backbone=facts))
    assert worst(parity_of(run, run, wrong, tmp_path / "graph")) > 10 * 1e-3


@pytest.mark.parametrize("side", [-1, 10**6, -(2**63)])
@pytest.mark.parametrize("fixture", ["llama_bundle", "bert_bundle"])
def test_ids_outside_both_tables_fail(fixture: str, side: int, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    graph = Graph.open(bundle / "model.onnx")
    ids = {name: np.ones((1, 4), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    ids["input_ids"][0, 1] = side
    with pytest.raises(Exception, match="out of data bounds"):
        graph.run(ids)


def test_the_first_id_past_the_rows_fails(llama_bundle: Path, llama_run: Path) -> None:
    run = Run.read(llama_run)
    graph = Graph.open(llama_bundle / "model.onnx")
    ids = {name: np.ones((1, 4), dtype=np.int64) for name in ("input_ids", "attention_mask")}
    ids["input_ids"][0, 1] = run.config.backbone.vocab + len(run.arrays.prompt_embeddings) - 1
    graph.run(ids)
    ids["input_ids"][0, 1] += 1
    with pytest.raises(Exception, match="out of data bounds"):
        graph.run(ids)


def test_the_embedding_table_is_the_models_own_input(llama: Path) -> None:
    """The oracle joins embeddings; that they are what the model makes of ids is checked here."""
    model = load_backbone(find_checkpoint(str(llama)), "words").model
    ids = torch.tensor([[5, 9, 7]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, model(inputs_embeds=model.get_input_embeddings().weight[ids]).logits
        )


def _same(value: float) -> Comparison:
    return Comparison(max_abs_diff=value, mean_abs_diff=0.0, flips=[])


@pytest.mark.parametrize(
    "bad", [Comparison(max_abs_diff=1e-5, mean_abs_diff=0.0, flips=[3]), _same(2e-3), _same(float("nan"))]
)
def test_a_flip_a_difference_or_a_nan_fails(bad: Comparison) -> None:
    good = _same(1e-5)
    fail_on_difference("task", Parity(rows=9, tolerance=1e-3, alone=good, padded_right=good, padded_left=good))
    for name in ("alone", "padded_right", "padded_left"):
        results = {"alone": good, "padded_right": good, "padded_left": good, name: bad}
        with pytest.raises(ExportError, match=name.replace("_", " ")):
            fail_on_difference("task", Parity(rows=9, tolerance=1e-3, **results))


def test_a_failed_parity_leaves_no_bundle(llama_run: Path, tmp_path: Path) -> None:
    """Damage what the run bakes to, but not what the oracle reads: the label words' rows."""
    folder = tmp_path / "run"
    run = Run.read(llama_run)
    baked = dataclasses.replace(run.arrays, label_weights=run.arrays.label_weights[::-1].copy())
    folder.mkdir()
    dataclasses.replace(run, arrays=baked).write(folder)
    with pytest.raises(ExportError, match="labels differ"):
        export(ExportConfig(runs=(folder,), out=tmp_path / "bundle"), Quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "got no rows, need at least one"), ('{"text": "a", "text_b": "b"}\n', "line 1: got a 'text_b'")],
)
def test_rows_that_prove_nothing(content: str, message: str, llama_run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    with pytest.raises(DataError, match=message):
        export(ExportConfig(runs=(llama_run,), out=tmp_path / "bundle", rows=rows), Quiet())


@pytest.mark.parametrize("change", ["weights", "configuration"])
def test_another_backbone_than_the_one_trained_on(
    change: str, llama: Path, llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    if change == "weights":
        weights = load_file(other / "model.safetensors")
        weights["model.norm.weight"][0] += 1
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    run = Run.read(llama_run)
    (tmp_path / "run").mkdir()
    dataclasses.replace(run, config=msgspec.structs.replace(run.config, model=str(other))).write(tmp_path / "run")
    with pytest.raises(RunError, match="has other weights, or another configuration, than the run was trained on"):
        export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())


def test_a_damaged_trace_is_named(llama_bundle: Path, llama_run: Path, tmp_path: Path) -> None:
    run = Run.read(llama_run)
    kept = (
        Path(os.environ["XDG_CACHE_HOME"])
        / "ptexport"
        / "traces"
        / trace_key(run.config.backbone, "last", has_prefix_kv=True, opset=18)
    )
    copy = Path(shutil.copytree(kept, tmp_path / "trace"))
    assert Trace.read(copy).info.opset == 18
    (copy / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(ExportError, match="its files are missing or cut short; remove the folder and export again"):
        Trace.read(copy)
    (copy / "trace.json").unlink()
    with pytest.raises(ExportError, match="not a trace"):
        Trace.read(copy)


def test_the_manifest_says_what_was_done(llama_bundle: Path, llama_run: Path) -> None:
    run = Run.read(llama_run)
    manifest = read_manifest((llama_bundle / "manifest.json").read_bytes(), "manifest.json")
    assert manifest.name == "reviews"
    assert manifest.task.folded_tokens == run.config.n_folded > 2
    assert manifest.task.prompt_tokens == 4
    assert manifest.task.max_length == run.config.max_length - run.config.n_folded
    assert manifest.task.label_words == {"positive": ["great", "good"], "negative": ["terrible", "bad"]}
    assert str(Path.home()) not in (llama_bundle / "manifest.json").read_text(encoding="utf-8")
    assert b"/" not in (llama_bundle / "manifest.json").read_bytes()


def test_tasks_on_one_backbone_share_their_weights_file(
    llama: Path, llama_bundle: Path, rows_file: Path, tmp_path: Path
) -> None:
    run_folder = train_tiny(llama, rows_file, "{text} [P*3]", tmp_path / "run")
    export(ExportConfig(runs=(run_folder,), out=tmp_path / "bundle"), Quiet())
    name = "model.onnx.data"
    assert (tmp_path / "bundle" / name).read_bytes() == (llama_bundle / name).read_bytes()
    assert (tmp_path / "bundle" / name).stat().st_nlink == 1
