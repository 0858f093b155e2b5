"""Multiple choice: candidates are scored one by one, their rows split, counted and answered as one."""

import dataclasses
import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import Quiet, sample, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.parity.compare import TOLERANCE
from ptexport.exporters.parity.reference import expected_logits
from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, PtexportError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.data.sources import read_splits
from ptexport.toolkit.data.splits import DataSplits, split_rows
from ptexport.toolkit.evaluation.evaluate import evaluate
from ptexport.toolkit.prompt.scoring import EncodedRows
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.train import train

LABELS = {"labels": "right=yes,wrong=no"}
LINEAR = {"labels": "right,wrong", "head": "linear"}
GOOD, BAD = ("bright", "fast", "very bright", "bright and fast"), ("dull", "slow", "very dull", "dull and slow")


def write_rows(path: Path) -> Path:
    """The bright candidate is right, among one or two dull ones; its number or its text is the label."""
    shuffle = random.Random(0).shuffle
    lines = []
    for number, (noun, good, bad) in enumerate(itertools.product(("film", "story", "review"), GOOD, BAD)):
        choices = [good, bad, "terrible"][: 2 + number % 2]
        shuffle(choices)
        label = good if number % 3 else choices.index(good)
        lines.append(json.dumps({"text": f"the {noun} was", "choices": choices, "label": label}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def load(path: Path, fields: list[str]) -> DataSplits:
    splits = read_splits(str(path), Columns(), print)
    return split_rows(splits, source=str(path), labels=["right", "wrong"], fields=fields, seed=0)


@pytest.fixture(scope="module")
def choices_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("choices") / "rows.jsonl")


def measured_by_loop(engine: Engine, rows: Sequence[Row]) -> float:
    """Each pair alone, each score by hand; checks what the engine says on the way."""
    n_right = 0
    for row in rows:
        scores = {}
        for choice in row.choices or ():
            ((right, wrong),) = engine.logits([(row.text, choice)]).tolist()
            scores[choice] = right - wrong
        best = sorted(scores, key=lambda choice: -scores[choice])[0]
        total = sum(math.exp(score) for score in scores.values())
        (prediction,) = engine.choose([(row.text, row.choices or ())])
        assert prediction.label == best
        assert prediction.probabilities == pytest.approx(
            {choice: math.exp(score) / total for choice, score in scores.items()}, abs=1e-5
        )
        n_right += best == row.label
    return n_right / len(rows)


BUNDLES = {
    "llama": ("[P] {text} {choice} [P]", LABELS),
    "bert": ("[CLS] {text} {choice} [SEP] [P*2] it is [MASK] [SEP]", LABELS),
}


@pytest.fixture(scope="module", params=BUNDLES)
def made(
    request: pytest.FixtureRequest, choices_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path]:
    """A run and its bundle, of a causal and of a masked model."""
    template, options = BUNDLES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    train_tiny(request.getfixturevalue(request.param), choices_file, template, folder / "run", **options)
    export(ExportConfig(runs=(folder / "run",), out=folder / "bundle"), Quiet())
    return Run.read(folder / "run"), folder


def test_a_row_is_answered_as_a_plain_loop_over_its_pairs_does(made: tuple[Run, Path], choices_file: Path) -> None:
    run, folder = made
    engine = Engine.open(folder / "bundle")
    assert engine.manifest.task.fields == ["text", "choice"]
    assert run.metrics is not None
    assert run.metrics.n_test == len(run.check_rows)
    assert measured_by_loop(engine, run.check_rows) == pytest.approx(run.metrics.test_accuracy)
    assert engine.manifest.task.parity.rows > sum(len(row.choices or ()) for row in run.check_rows)

    rows = list(read_rows(choices_file))
    first = [dataclasses.replace(row, label=(row.choices or ())[0]) for row in rows]  # right by chance
    shares = [measured_by_loop(engine, some) for some in (rows, first)]
    found = [evaluate(engine, some, lambda done: None).evaluation for some in (rows, first)]
    assert [evaluation.accuracy for evaluation in found] == pytest.approx(shares)
    assert 0 < shares[1] < 1
    assert found[1].labels == ["0", "1", "2"]
    assert np.sum(found[1].confusion, axis=1).tolist() == [len(rows), 0, 0]


def test_the_order_of_candidates_decides_nothing(made: tuple[Run, Path], choices_file: Path) -> None:
    engine = Engine.open(made[1] / "bundle")
    rows = [(row.text, row.choices or ()) for row in read_rows(choices_file)]
    some, others = engine.choose(rows), engine.choose([(text, choices[::-1]) for text, choices in rows])
    for one, other in zip(some, others, strict=True):
        assert one.label == other.label
        assert list(one.probabilities) == list(other.probabilities)[::-1]
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    (pair,) = engine.predict([(rows[0][0], rows[0][1][0])])
    assert pair.label in ("right", "wrong")
    (cut,) = engine.choose([("the film was", ["dull", "very " * 99])])
    assert cut.truncated


def test_without_its_rows_the_prompt_scores_otherwise(made: tuple[Run, Path]) -> None:
    """The control: what the bundle is compared with sees the virtual tokens."""
    run, folder = made
    backbone = load_backbone_of(run.config, folder / "run")
    pairs = [(row.text, choice) for row in run.check_rows for choice in row.choices or ()]
    got = Engine.open(folder / "bundle").logits(pairs)
    blank = dataclasses.replace(
        run, arrays=dataclasses.replace(run.arrays, prompt_embeddings=np.zeros_like(run.arrays.prompt_embeddings))
    )
    differences = [np.abs(got - expected_logits(one, backbone, pairs, Quiet())).max() for one in (run, blank)]
    assert differences[0] < TOLERANCE < differences[1]


METHODS = {
    "p-tuning": ("[P] {text} {choice} [P]", LABELS),
    "p-tuning-v2": ("[P*4] {text} {choice}", LABELS),
    "prefix": ("[P*4] {text} {choice}", LABELS),
    "prompt-tuning": ("[P*4] {text} {choice}", LINEAR),
    "lora": ("Review: {text} {choice}", LABELS),
    "fine-tune": ("Review: {text} {choice}", LINEAR),
    "pet": ("Review: {text} {choice} it is [MASK]", LABELS),
    "manual": ("Review: {text} {choice} it is [MASK]", {**LABELS, "n_shots": 2}),
    "search": ("[P] {text} {choice} it [P*2]", LABELS),
}


@pytest.mark.parametrize("method", sample(METHODS, "p-tuning-v2", "fine-tune", "manual"))
def test_every_method_counts_whole_rows(method: str, llama: Path, choices_file: Path, tmp_path: Path) -> None:
    """What training measured is what the untouched model answers, row by row."""
    template, options = METHODS[method]
    settings, folder = TrainSettings(epochs=8, batch_size=8), tmp_path / "run"
    train_tiny(llama, choices_file, template, folder, method=method, settings=settings, **options)
    run = Run.read(folder)
    backbone = load_backbone_of(run.config, folder)
    right = []
    for row in run.check_rows:
        pairs = [(row.text, choice) for choice in row.choices or ()]
        scores = expected_logits(run, backbone, pairs, Quiet()) @ [1, -1]
        right.append(pairs[int(scores.argmax())][1] == row.label)
    assert run.metrics is not None
    assert run.metrics.test_accuracy == pytest.approx(np.mean(right))
    assert run.metrics.test_accuracy > 0.5, "of two or three candidates"


def test_accuracy_is_that_of_rows_not_of_pairs() -> None:
    rows = EncodedRows(encodings=[], targets=[0, 1, 1, 1, 0], n_labels=2, n_choices=[2, 3])
    scores = torch.tensor([-2.0, -3.0, 1.0, -9.0, 0.5])  # as pairs: wrong, right, wrong, right, right
    assert rows.correct_choices(scores).tolist() == [True, False]


def test_candidates_stay_in_one_part(tmp_path: Path) -> None:
    """Those of a row, and those of a copy of it in another order."""
    rows = [{"text": f"why {i % 40}?", "choices": ["a", "b"][:: 1 if i < 40 else -1], "label": "a"} for i in range(80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load(path, ["text", "choice"])
    parts = [{row.text for row in part} for part in (data.train, data.dev, data.test)]
    assert [len(part) for part in parts] == [28, 6, 6]
    assert len(set.union(*parts)) == 40
    assert [len(part) for part in (data.train, data.dev, data.test)] == [56, 12, 12]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "line 1: got no list 'choices', the template takes one"),
        ({"choices": "a|b"}, "'choices' is 'a|b', need a list of strings; CSV has no lists, so write JSON lines"),
        ({"choices": ["a", 2]}, r"'choices' is \['a', 2\], need a list of strings"),
        ({"choices": ["a"], "label": 0}, "got 1 'choices', need at least 2"),
        ({"choices": ["a", " a"], "label": 0}, "got the same text twice in 'choices'"),
        ({"choices": ["a", " "], "label": 0}, "got an empty string in 'choices'"),
        ({"choices": ["a", "\ud800"], "label": 0}, "'choices' holds half of a surrogate pair"),
        ({"choices": ["a", "b"]}, r"no label, need one of \['a', 'b'\]; name its column with --columns label=NAME"),
        (
            {"choices": ["a", "b"], "label": 2},
            "got label 2, need one of the 2 choices; give its text",
        ),
        ({"choices": ["a", "b"], "label": -1}, "got label -1, need one of the 2 choices"),
        ({"choices": ["a", "b"], "label": True}, "got label true, need one of the 2 choices"),
        ({"choices": ["a", "b"], "label": "c"}, 'got label "c", need one of the 2 choices'),
        ({"choices": ["a", "b"], "label": 0, "text_b": "c"}, "got a 'text_b', the template takes none"),
    ],
)
def test_rows_that_are_no_multiple_choice(record: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "why?", **record}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(path, ["text", "choice"])


def test_choices_need_a_template_for_them(choices_file: Path) -> None:
    with pytest.raises(DataError, match="line 1: got a list 'choices', the template takes none"):
        load(choices_file, ["text"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "right=yes,wrong=no,other=maybe"}, "got 3, need 2 for {choice}; give one for the right choice"),
        ({"calibrate": True}, "calibrate: is for labels"),
        ({"abstain": 0.9}, "abstain: is for labels"),
        (
            {"contextual_calibration": True, "method": "manual", "template": "is {text} {choice}"},
            "prior-correction: is for labels",
        ),
        ({"template": "[P] {choice} {text}"}, "{choice} precedes {text}"),
        ({"template": "[P] {text} {text_b} {choice}"}, "has 2 {text_b} or {choice}, needs at most 1"),
        ({"template": "[P] {text} a{choice}"}, "a letter touches a text in 'a{choice}'"),
    ],
)
def test_what_a_multiple_choice_has_no_use_for(options: dict[str, object], message: str, choices_file: Path) -> None:
    given = {"model": "nothing", "template": "[P] {text} {choice}", **LABELS, **options}
    config = TrainConfig(data=str(choices_file), settings=TrainSettings(), **given)  # type: ignore[arg-type]
    with pytest.raises(PtexportError, match=re.escape(message)):
        train(read_inputs(config, Quiet()), Quiet())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["why?"], r"text 0: got str, need a text with its choices; write choose\("),
        ([("why?", ["a", "b"]), (None, ["a", "b"])], "text 1: got tuple, need a text with its choices"),
        ([("why?", ["a", "b"]), ("why?", ["a"])], "text 1: got 1 'choices'"),
        ([("why?", "ab")], "text 0: 'choices' is 'ab', need a list of strings"),
    ],
)
def test_what_the_engine_cannot_choose_from(made: tuple[Run, Path], rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Engine.open(made[1] / "bundle").choose(rows)


def test_only_a_multiple_choice_chooses(llama_bundle: Path) -> None:
    with pytest.raises(DataError, match=r"choose: got task .*, need a template with \{choice\}; use predict"):
        Engine.open(llama_bundle).choose([("why?", ["a", "b"])])


def test_a_task_among_others_chooses_as_it_does_alone(made: tuple[Run, Path], tmp_path: Path) -> None:
    shutil.copytree(made[1] / "run", tmp_path / "other")
    export(ExportConfig(runs=(made[1] / "run", tmp_path / "other"), out=tmp_path / "both"), Quiet())
    rows = [(row.text, row.choices or ()) for row in made[0].check_rows]
    alone, both = Engine.open(made[1] / "bundle").choose(rows), Engine.open(tmp_path / "both")
    for name in ("run", "other"):
        for one, other in zip(alone, both.task(name).choose(rows), strict=True):
            assert other.label == one.label
            assert other.probabilities == pytest.approx(one.probabilities, abs=1e-4)


def test_the_commands(made: tuple[Run, Path], choices_file: Path, tmp_path: Path) -> None:
    bundle = str(made[1] / "bundle")
    rows = list(read_rows(choices_file))
    answers = Engine.open(bundle).choose([(row.text, row.choices or ()) for row in rows])

    def said(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    out = tmp_path / "answers.jsonl"
    for _ in range(2):  # the second finds the first's rows
        said("predict", bundle, "--input", choices_file, "--output", out, "--resume")
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["label"] for line in lines] == [answer.label for answer in answers]
    assert [(line["text"], tuple(line["choices"])) for line in lines] == [(row.text, row.choices) for row in rows]
    typed = said("predict", bundle, rows[0].text, *(rows[0].choices or ()))
    assert typed.split("\t")[0] == answers[0].label
    accuracy = np.mean([answer.label == row.label for answer, row in zip(answers, rows, strict=True)])
    found = json.loads(said("evaluate", bundle, "--data", choices_file, "--json"))["evaluations"][0]
    assert found["accuracy"] == pytest.approx(accuracy)
    shown = json.loads(said("inspect", bundle, "--json"))["tasks"][0]["template_tokens"]
    assert [token for token in shown if isinstance(token, str)] == ["text", "choice"]
    with pytest.raises(DataError, match="TEXTS: got 1 'choices', need at least 2"):
        said("predict", bundle, "why?", "because")
