"""Classifiers of Transformers answer from a bundle as they do from Transformers, one row at a time and unpadded."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from commands import ptexport
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, Quiet, sample, save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.errors import PtexportError
from ptexport.toolkit.bench.systems.case import make_case
from ptexport.toolkit.imports import import_classifier as module
from ptexport.toolkit.imports.config import ImportConfig
from ptexport.toolkit.imports.import_classifier import import_classifier
from ptexport.toolkit.imports.inputs import read_classifier
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run

LABELS = {0: "no", 1: "maybe", 2: "yes"}
TEXTS = ["the film was bright", "slow", "a very dull story and a bad film", "is it good?"]
MEAN = "modernbert, mean"
LIKE = {"deberta-v2": "bert", "mpnet": "roberta"}
"""Families that tiny.py does not have, and those whose tokenizer they get."""
FAMILIES = [*ARCHITECTURES, MEAN, *LIKE]
WITH_TOKEN_TYPES = ("bert", "albert", "electra")
DENSE = {
    "roberta": "classifier.dense",
    "electra": "classifier.dense",
    "distilbert": "pre_classifier",
    MEAN: "head.dense",
    "bert": "bert.pooler.dense",
    "albert": "albert.pooler",
}
"""The layer before the last of the head."""


def save_classifier(folder: Path, family: str, **changes: Any) -> Path:
    if family == MEAN:
        family, changes = "modernbert", {"classifier_pooling": "mean", **changes}
    if family == "deberta-v2":
        changes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], **changes}
    like, changes = LIKE.get(family), {"id2label": LABELS, **changes}
    save_model(folder, family, like=like, auto=AutoModelForSequenceClassification, **changes)
    if family in WITH_TOKEN_TYPES:
        names = ["input_ids", "token_type_ids", "attention_mask"]
        change_config(folder, "tokenizer_config.json", model_input_names=names)
    return folder


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def imported(folder: Path, out: Path, **options: Any) -> Run:
    import_classifier(read_classifier(ImportConfig(source=str(folder), out=out, **options), Quiet()), Quiet())
    return Run.read(out)


def answers(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """Transformers' own pipeline, row by row, without its softmax."""
    classify = pipeline("text-classification", str(folder), top_k=None, function_to_apply="none", dtype=torch.float32)
    scores = [{answer["label"]: answer["score"] for answer in classify([text])[0]} for text in texts]
    return np.array([[score[label] for label in LABELS.values()] for score in scores], dtype=np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_imported(family: str, tmp_path: Path) -> None:
    """With the logits of Transformers, which the import compares, and a backbone that export loads again."""
    run = imported(save_classifier(tmp_path / "model", family), tmp_path / "run")
    config = run.config
    assert config.imported is not None
    assert (config.imported.peft_type, config.imported.task_type, config.imported.rows) == (None, "SEQ_CLS", 9)
    assert config.imported.max_abs_diff < 1e-5
    assert (config.method, config.template, config.labels) == ("fine-tune", "{text}", ["no", "maybe", "yes"])
    expected = "last" if config.facts.causal else "pooled-mean" if family == MEAN else "pooled"
    assert config.pooling == expected
    assert load_backbone_of(config, tmp_path / "run").facts.fingerprint == config.facts.fingerprint


@pytest.mark.parametrize("family", sample(FAMILIES, "bert", "roberta", "distilbert", "llama", MEAN))
def test_a_bundle_answers_as_the_pipeline_does(family: str, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", family, num_hidden_layers=2)
    done = ptexport("export", folder, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    expected = answers(folder, TEXTS)
    assert np.ptp(expected) > 0.1
    assert np.abs(Engine.open(tmp_path / "bundle").logits(TEXTS) - expected).max() < 1e-5
    parity = Bundle.open(tmp_path / "bundle").manifest.task.parity
    assert parity is not None
    assert parity.rows > 100, "the built-in cities"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("family", sample(DENSE, "roberta", "bert"))
def test_the_layers_of_the_head_are_compared(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one changed output of the layer before the last, and neither import nor export lets it pass."""
    folder = save_classifier(tmp_path / "model", family)
    imported(folder, tmp_path / "run")
    changed = shutil.copytree(folder, tmp_path / "changed")
    change_tensor(changed, f"{DENSE[family]}.weight", lambda weight: weight[3].add_(1))

    def load_changed(checkpoint: Checkpoint, head: Any) -> Backbone:
        return load_backbone(dataclasses.replace(checkpoint, path=changed), head)

    monkeypatch.setattr(module, "load_backbone", load_changed)
    with pytest.raises(PtexportError, match="the logits of the run differ from those of Transformers by up to"):
        imported(folder, tmp_path / "other")
    shutil.rmtree(folder)
    shutil.move(changed, folder)
    with pytest.raises(PtexportError, match="has other weights, or another configuration"):
        export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_pairs_of_texts(family: str, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", family, num_hidden_layers=2)
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": a, "text_b": b}) + "\n" for a, b in pairs))
    run = imported(folder, tmp_path / "run", template="{text} {text_b}", rows=rows)
    assert (
        run.config.template
        == {
            "bert": "[CLS] {text} [SEP] {text_b} [SEP]",
            "roberta": "[CLS]{text}[SEP][SEP]{text_b}[SEP]",
            "llama": "{text}{text_b}",
        }[family]
    )
    export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [model(**tokenizer(a, b, return_tensors="pt")).logits[0].numpy() for a, b in pairs]
    assert np.abs(Engine.open(tmp_path / "bundle").logits(pairs) - np.stack(expected)).max() < 1e-5


def change_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "damage", "options", "message"),
    [
        ("roberta", lambda f: change_config(f, id2label={"0": "score"}), {}, "is a regression, need a classifier of"),
        ("roberta", lambda f: change_config(f, problem_type="regression"), {}, "is a regression, need a classifier of"),
        ("roberta", lambda f: change_config(f, problem_type="multi_label_classification"), {}, "several labels"),
        ("roberta", lambda f: change_config(f, id2label={"0": "a", "1": "b", "2": "a"}), {}, "need different names"),
        ("roberta", lambda f: change_config(f, model_type="t5"), {}, "Transformers cannot load it"),
        ("roberta", lambda f: drop_tensor(f, "classifier.dense.weight"), {}, "lacks classifier.dense.weight, so"),
        ("roberta", lambda f: change_config(f, id2label={"1": "a", "2": "b"}), {}, "need names of 0, 1, …"),
        ("roberta", lambda f: change_config(f, id2label={str(i): str(i) for i in range(4)}), {},
         "Transformers cannot load it"),
        ("roberta", pickle_alone, {}, "has only pytorch_model.bin, a pickle"),
        ("roberta", lambda f: (f / "model.safetensors").unlink(), {}, "has no weights in safetensors"),
        ("roberta", lambda f: (f / "model.safetensors").write_bytes(b"x"), {}, "cannot load it for classification"),
        ("roberta", lambda f: None, {"labels": "a,b"}, "labels 'a,b': got 2, .*model has 3"),
        ("roberta", lambda f: None, {"labels": "a=b,c=d"}, "label 'a': has words, and a linear head uses none"),
        ("roberta", lambda f: None, {"template": "{text} was"}, "a classifier takes texts alone"),
        ("roberta", lambda f: None, {"template": "[P] {text}"}, "a classifier takes texts alone"),
        ("roberta", lambda f: None, {"template": "{text} {text_b}"}, "got no 'text_b'"),
        ("roberta", lambda f: None, {"max_length": 70}, "takes at most 64 tokens"),
        # Where the tokenizer cuts shows in the row that is longer than the model takes.
        ("roberta", lambda f: change_config(f, "tokenizer_config.json", truncation_side="left"), {},
         "a row of more than 64 tokens has other ids than its own tokenizer gives"),
        ("bert", lambda f: change_config(f, "tokenizer_config.json", model_input_names=["input_ids"]),
         {"template": "{text} {text_b}", "rows": "text,text_b\na,b\n"}, "line 2 has other token types than"),
        # With a pad token that texts end with, Transformers reads the token before it.
        ("llama", lambda f: change_config(f, pad_token_id=AutoTokenizer.from_pretrained(f)("?")["input_ids"][-1]),
         {"rows": "text\nis it good?\n"}, "the logits of the run differ from those of Transformers"),
    ],
)  # fmt: skip
def test_what_is_refused(
    family: str, damage: Callable[[Path], object], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_classifier(tmp_path / "model", family)
    damage(folder)
    if "rows" in options:
        (tmp_path / "rows.csv").write_text(options["rows"])
        options = {**options, "rows": tmp_path / "rows.csv"}
    with pytest.raises(PtexportError, match=message):
        imported(folder, tmp_path / "runs" / "run", **options)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_language_model_is_no_classifier(roberta: Path, tmp_path: Path) -> None:
    with pytest.raises(PtexportError, match="holds a RobertaForMaskedLM, need a …ForSequenceClassification"):
        imported(roberta, tmp_path / "run")


def test_the_command(rows_file: Path, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", "distilbert")
    command = ["import", "classifier", folder, "--out", tmp_path / "run", "--labels", "x,negative,positive"]
    done = ptexport(*command, "--rows", rows_file)
    assert done.returncode == 0, done.stderr
    assert "labels x, negative, positive; largest difference of a logit from Transformers over 9 rows" in done.stdout
    record = json.loads(ptexport(*command, "--force", "--json").stdout)
    assert (record["labels"], record["settings"], record["pooling"]) == (["x", "negative", "positive"], None, "pooled")
    assert "distilbert" in ptexport("inspect", tmp_path / "run").stdout
    done = ptexport("export", folder, "--out", tmp_path / "bundle", "--model", folder)
    assert (done.returncode, "a classifier is its own model; leave out --model" in done.stderr) == (1, True)
    with pytest.raises(PtexportError, match="run: has an imported classifier, need virtual tokens"):
        make_case(Run.read(tmp_path / "run"), find_checkpoint(str(folder)))
    gone = ptexport("import", "classifier", "somebody/nothing", "--out", tmp_path / "none")
    assert "the hub cannot be reached" in gone.stderr


def test_a_classifier_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: its client's cache as it lies on a disk. Export loads the commit that was imported."""
    repo, commit = tmp_path / "hub" / "models--somebody--tiny", hashlib.sha1(b"main").hexdigest()
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    save_classifier(repo / "snapshots" / commit, "bert")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run = imported(Path("somebody/tiny"), tmp_path / "run")
    assert (run.config.model, run.config.revision) == ("somebody/tiny", commit)
    assert load_backbone_of(run.config, tmp_path / "run").facts.name == "somebody/tiny"


def test_columns_of_the_rows(tmp_path: Path) -> None:
    """They are those of the bundle too; for a run, export reads another file by other columns."""
    folder = save_classifier(tmp_path / "model", "distilbert")
    (tmp_path / "titles.csv").write_text("title,body,class\nthe film,was bright,0\nslow,and dull,2\n")
    (tmp_path / "bodies.csv").write_text("body,class\nwas bright,0\n")
    columns = ["--text-format", "{title} {body}", "--columns", "label=class", "--label-names", "no,maybe,yes"]
    read = ["--rows", tmp_path / "titles.csv", *columns]
    done = ptexport("import", "classifier", folder, "--out", tmp_path / "run", *read)
    assert done.returncode == 0, done.stderr
    run = Run.read(tmp_path / "run")
    assert {row.text: row.label for row in run.check_rows} == {"the film was bright": "no", "slow and dull": "yes"}
    for source, options, rows in (
        (folder, read, 2),
        (tmp_path / "run", ["--rows", tmp_path / "titles.csv"], 2),
        (tmp_path / "run", ["--rows", tmp_path / "bodies.csv", "--columns", "text=body"], 1),
    ):
        done = ptexport("export", source, "--out", tmp_path / "bundle", "--force", *options)
        assert done.returncode == 0, done.stderr
        assert Bundle.open(tmp_path / "bundle").manifest.task.columns == run.config.columns
        (report,) = json.loads((tmp_path / "bundle" / "parity.json").read_text())["tasks"]
        assert report["rows"] - report["always"] == rows
    for command in (["import", "classifier", folder], ["export", folder], ["export", tmp_path / "run"]):
        done = ptexport(*command, "--out", tmp_path / "new", *columns)
        assert (done.returncode, "go with --rows FILE" in done.stderr) == (2, True)
