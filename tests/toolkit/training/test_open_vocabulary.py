"""Open answers: every word of the vocabulary is a label."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import Quiet, train_tiny, worst
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.multitask.join import JointTasks
from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, ExportError, OutputError, VerbalizerError
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.serving.answers import output_tensors
from ptexport.runtime.serving.metadata import model_metadata
from ptexport.runtime.serving.questions import Options
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.evaluation.evaluate import evaluate
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

TEXTS = [f"{article} {noun}" for article in ("the", "a") for noun in ("film", "story", "review", "answer", "city")]
WORDS = ["great", "slow", "bright", "dull", "fast"]
TEMPLATES = {"llama": "{text} was", "bert": "{text} was [MASK]"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"text": f"{text} {extra}", "label": word} for text in TEXTS for extra, word in zip("?.!,?", WORDS, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def bundle_of(run: Path, folder: Path) -> Path:
    manifest = export(ExportConfig(runs=(run,), out=folder), Quiet())
    assert manifest.task.labels is None
    assert worst(manifest.task.parity) < 1e-4
    assert len(manifest.to_json()) < 10_000
    return folder


@pytest.mark.parametrize("family", TEMPLATES)
def test_answers_are_the_words_that_the_model_itself_finds_likeliest(
    family: str, model_of: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    model = model_of(family)
    run = train_tiny(model, rows, TEMPLATES[family], tmp_path / "run", labels="vocab", method="manual")
    engine = Engine.open(bundle_of(run, tmp_path / "bundle"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = family == "llama"
    single = {}
    for id_ in range(len(tokenizer)):
        word = tokenizer.decode([id_], skip_special_tokens=True).strip()
        if word and tokenizer.encode(f" {word}" if causal else word, add_special_tokens=False) == [id_]:
            single[id_] = word
    assert engine.labels == list(single.values())
    assert {"great", "slow"} <= set(engine.labels)
    assert not {"[MASK]", "<s>", "##a"} & set(engine.labels)
    untouched = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_pretrained(model).eval()
    answers = []
    for text in TEXTS[:4]:
        ids = tokenizer(TEMPLATES[family].format(text=text), return_tensors="pt").input_ids
        where = -1 if causal else ids[0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            scores = untouched(input_ids=ids).logits[0, where, list(single)]
        expected = scores.softmax(0).topk(3)
        (prediction,) = engine.predict([text], top_k=3)
        assert list(prediction.probabilities) == [list(single.values())[i] for i in expected.indices]
        assert list(prediction.probabilities.values()) == pytest.approx(expected.values.tolist(), abs=1e-4)
        assert prediction.label == prediction.surest == next(iter(prediction.probabilities))
        answers.append(prediction)
    assert len({answer.label for answer in answers}) > 1  # else any constant would pass


@pytest.mark.parametrize("method", ["p-tuning", "lora"])
def test_training_moves_answers_towards_the_rows(method: str, llama: Path, rows: Path, tmp_path: Path) -> None:
    template = "{text} was [P*2]" if method == "p-tuning" else "{text} was"
    rates = {"lr": 0.03} if method == "p-tuning" else {"backbone_lr": 0.03}
    run = train_tiny(llama, rows, template, tmp_path / "run", labels="vocab", method=method, **rates)
    engine = Engine.open(bundle_of(run, tmp_path / "bundle"))
    before = Engine.open(
        bundle_of(
            train_tiny(llama, rows, "{text} was", tmp_path / "manual", labels="vocab", method="manual"),
            tmp_path / "manual-bundle",
        )
    )
    texts = [row.text for row in read_rows(rows)]

    def mass(engine: Engine) -> float:
        answers = engine.predict(texts, top_k=len(engine.labels))
        return float(np.mean([sum(answer.probabilities[word] for word in WORDS) for answer in answers]))

    assert mass(engine) > 1.2 * mass(before)
    assert [len(answer.probabilities) for answer in engine.predict(texts[:2])] == [5, 5]


def test_evaluating_predicting_and_serving(bert: Path, rows: Path, tmp_path: Path) -> None:
    run = train_tiny(bert, rows, "{text} [P] [MASK]", tmp_path / "run", labels="vocab")
    bundle = bundle_of(run, tmp_path / "bundle")
    engine = Engine.open(bundle)
    labelled = list(read_rows(rows))
    figures = evaluate(engine, labelled, lambda done: None).evaluation
    answers = [engine.predict([row.text])[0] for row in labelled]
    both = list(zip(labelled, answers, strict=True))
    assert figures.accuracy == np.mean([row.label == answer.label for row, answer in both])
    assert figures.top_k_accuracy == np.mean([row.label in answer.probabilities for row, answer in both])
    assert sorted(figures.labels) == sorted(WORDS), "not the rest of the vocabulary, which no row has"
    assert len(figures.confusion) == len(figures.f1) == len(WORDS)

    out = tmp_path / "answers.jsonl"
    command = ["predict", str(bundle), "--input", str(rows), "--output", str(out)]
    assert CliRunner().invoke(cli, [*command, "--top-k", "2"]).exit_code == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [next(iter(line["probabilities"])) for line in lines] == [answer.label for answer in answers]
    assert {len(line["probabilities"]) for line in lines} == {2}
    assert CliRunner().invoke(cli, [*command, "--top-k", "2", "--resume"]).exit_code == 0
    other = CliRunner().invoke(cli, [*command, "--resume"])
    assert isinstance(other.exception, OutputError)
    assert "got predictions of another bundle or --top-k" in str(other.exception)

    entry = engine.manifest.task
    assert [output["shape"] for output in model_metadata("m", [], entry, {})["outputs"]] == [[-1], [-1, -1]]
    need = engine.predict(["the film"])
    label, labels, probabilities = output_tensors(need, [], Options(), entry)
    assert label.data == [need[0].label]
    assert (labels.data, probabilities.data) == (list(need[0].probabilities), list(need[0].probabilities.values()))


def test_what_is_no_open_answer(llama: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(VerbalizerError, match="labels vocab: needs label words, and a linear head has none"):
        train_tiny(llama, rows, "{text} [P]", tmp_path / "linear", labels="vocab", head="linear")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text(encoding="utf-8") + '{"text": "a", "label": "two words"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 51: label 'two words' is not one token here, nor .* 0 more of 51"):
        train_tiny(llama, bad, "{text} [P]", tmp_path / "bad", labels="vocab")
    run = Run.read(train_tiny(llama, rows, "{text} [P]", tmp_path / "run", labels="vocab"))
    with pytest.raises(ExportError, match="task a: has an open vocabulary, which has too many labels"):
        JointTasks({"a": run, "b": run})


def test_words_are_those_of_their_place(model_of: Callable[[str], Path]) -> None:
    tokenizer = WordTokenizer((model_of("llama") / "tokenizer.json").read_text(encoding="utf-8"))
    spaced, glued = (Verbalizer.parse("vocab", linear=False).filled(tokenizer, spaced=s).labels for s in (True, False))
    assert spaced != glued
    for labels, is_spaced in ((spaced, True), (glued, False)):
        assert len(set(labels)) == len(labels) > 20
        assert all(len(tokenizer.ids(label, spaced=is_spaced)) == 1 for label in labels)
