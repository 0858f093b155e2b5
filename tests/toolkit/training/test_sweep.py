"""Many trainings side by side, stopped and gone on with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import ptexport

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.cli.sweep_axes import parse_axes
from ptexport.toolkit.run.run import Run


def sweep(
    llama: Path, rows_file: Path, out: Path, *axes: str, more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    given = (
        "--model",
        llama,
        "--data",
        rows_file,
        "--template",
        "{text} [P]",
        "--labels",
        "positive=great,negative=bad",
    )
    options = [word for axis in axes for word in ("--sweep", axis)]
    return ptexport("train", *given, "--epochs", "2", "--out", out, *options, *more)


def test_every_combination_and_the_best_of_them(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    axes = ("lr=1e-4,0.02", "rows=1,4")
    done = sweep(llama, rows_file, out, *axes)
    assert done.returncode == 0, done.stderr
    names = {f"lr={lr},rows={rows}" for lr in ("0.0001", "0.02") for rows in (1, 4)}
    assert {path.name for path in out.iterdir()} == {*names, "best", "sweep.json"}
    assert Run.read(out / "lr=0.02,rows=4").config.template == "{text} [P*4]"
    assert Run.read(out / "lr=0.02,rows=4").config.settings.lr == 0.02
    outcomes = json.loads((out / "sweep.json").read_text())["outcomes"]
    assert {outcome["name"] for outcome in outcomes} == names
    accuracies = [outcome["dev_accuracy"] for outcome in outcomes]
    assert accuracies == sorted(accuracies, reverse=True)
    assert str((out / "best").readlink()) == outcomes[0]["name"]
    assert all(name in done.stdout for name in names)

    done = sweep(llama, rows_file, out, *axes)
    assert (done.returncode, "continue with --resume" in done.stderr) == (1, True)
    kept = (out / "lr=0.02,rows=4" / "metrics.json").stat().st_mtime_ns
    for path in (out / "lr=0.02,rows=1").iterdir():
        path.unlink()
    (out / "lr=0.02,rows=1").rmdir()
    done = sweep(llama, rows_file, out, *axes, more=("--resume", "--json"))
    assert done.returncode == 0, done.stderr
    assert {outcome["name"] for outcome in json.loads(done.stdout)["outcomes"]} == names
    assert (out / "lr=0.02,rows=4" / "metrics.json").stat().st_mtime_ns == kept
    done = sweep(llama, rows_file, out, "lr=1e-4", more=("--resume",))
    assert (done.returncode, "belongs to another sweep; give the same options" in done.stderr) == (1, True)


def test_templates_and_encoders(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    axes = ("template={text}, so [P*2]", "template=[P*2] {text}", "encoder=none,mlp")
    done = sweep(llama, rows_file, tmp_path / "out", *axes)
    assert done.returncode == 0, done.stderr
    run = Run.read(tmp_path / "out" / "template=1,encoder=none")
    assert (run.config.template, run.config.encoder, run.config.settings.lr) == ("{text}, so [P*2]", "none", 0.01)
    assert Run.read(tmp_path / "out" / "template=2,encoder=mlp").config.settings.lr == 0.001


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("speed=1", r"need NAME=VALUE,VALUE with a name of method, template, rows, .*seed"),
        ("lr", "need NAME=VALUE,VALUE"),
        ("lr=fast", "'fast' is not a valid number; correct the value"),
        ("lr=nan", "'nan' is not a finite number; correct the value"),
        ("lr=-1", "-1.0 is not in the range x>0"),
        ("rows=1.5", "'1.5' is not a valid integer"),
        ("batch_size=0", "0 is not in the range x>=1"),
        ("encoder=gru", "'gru' is not one of 'lstm', 'mlp', 'none'"),
    ],
)
def test_sweeps_that_cannot_be_parsed(spec: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        parse_axes([spec])


def test_a_run_that_fails_leaves_the_others(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    done = sweep(llama, rows_file, tmp_path / "out", "lr=1e38,0.01")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((tmp_path / "out" / "sweep.json").read_text())["outcomes"]
    assert [(outcome["name"], outcome["failed"] is None) for outcome in outcomes] == [
        ("lr=0.01", True),
        ("lr=1e+38", False),
    ]
    done = sweep(llama, rows_file, tmp_path / "all", "lr=1e38,2e38")
    assert (done.returncode, "every run failed, the first with: training: " in done.stderr) == (1, True)


def test_rows_of_a_template_with_two_groups(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    done = sweep(llama, rows_file, tmp_path / "out", "template=[P] {text} [P]", "rows=1,2")
    assert (done.returncode, "has 2 groups of virtual tokens, need one; sweep template=" in done.stderr) == (1, True)


def test_a_combination_that_cannot_be_trained_stops_no_other(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    done = sweep(llama, rows_file, out, "rows=1,200,2", "encoder=none")
    assert done.returncode == 0, done.stderr
    outcomes = {outcome["name"]: outcome for outcome in json.loads((out / "sweep.json").read_text())["outcomes"]}
    assert "leaving none for text" in outcomes["rows=200,encoder=none"]["failed"]
    assert "leaving none for text" in done.stdout
    assert [outcomes[f"rows={n},encoder=none"]["failed"] for n in (1, 2)] == [None, None]
    done = ptexport("export", out, "--out", tmp_path / "bundle")
    assert (done.returncode, f"of a sweep, {out / 'best'}" in done.stderr) == (1, True)


def test_a_rate_that_was_given_is_kept(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """Even if it is another encoder's default."""
    done = sweep(llama, rows_file, tmp_path / "out", "encoder=none,lstm", more=("--lr", "0.005"))
    assert done.returncode == 0, done.stderr
    rates = [Run.read(tmp_path / "out" / f"encoder={kind}").config.settings.lr for kind in ("none", "lstm")]
    assert rates == [0.005, 0.005]


def test_a_table_is_kept_when_going_on_fails(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "sweep", Path(shutil.copytree(llama, tmp_path / "model"))
    assert sweep(model, rows_file, out, "rows=1,2").returncode == 0
    before = (out / "sweep.json").read_bytes()
    (model / "config.json").rename(model / "away.json")
    done = sweep(model, rows_file, out, "rows=1,2", more=("--resume",))
    (model / "away.json").rename(model / "config.json")
    assert (done.returncode, "no config.json" in done.stderr) == (1, True)
    assert (out / "sweep.json").read_bytes() == before
    (out / "best").unlink()
    (out / "best").mkdir()
    done = sweep(model, rows_file, out, "rows=1,2", more=("--resume",))
    assert (done.returncode, "best: cannot be written (Is a directory); remove it" in done.stderr) == (1, True)


def test_what_cannot_abstain_as_asked_is_not_chosen(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """Labels that have nothing to do with the texts: no row is sure enough."""
    odd = tmp_path / "odd.csv"
    odd.write_text(
        "text,label\n" + "".join(f"the film was {i},{'negative' * (i % 2) or 'positive'}\n" for i in range(60))
    )
    done = sweep(llama, odd, tmp_path / "out", "lr=1e-6", more=("--abstain", "1"))
    assert (
        done.returncode,
        "every run failed, the first with: abstain 1.0: even the most confident dev rows" in done.stderr,
    ) == (1, True)


def test_each_method_gets_the_backbone_it_reads(bert: Path, rows_file: Path, tmp_path: Path) -> None:
    """A linear head on the encoder alone, label words on the language-model head: neither is the other's."""
    given = (
        "--model",
        bert,
        "--data",
        rows_file,
        "--template",
        "{text} [MASK]",
        "--labels",
        "positive=great,negative=bad",
    )
    axes = ("--sweep", "method=lora,pet", "--sweep", "backbone_lr=1e-3")
    done = ptexport("train", *given, "--epochs", "1", *axes, "--method", "pet", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    runs = {method: Run.read(tmp_path / "out" / f"method={method},backbone_lr=0.001") for method in ("lora", "pet")}
    assert {method: run.config.method for method, run in runs.items()} == {"lora": "lora", "pet": "pet"}


def test_what_only_a_combination_needs_is_not_asked_of_the_rest(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    done = sweep(llama, rows_file, tmp_path / "out", "encoder=none", more=("--init", "words"))
    assert done.returncode == 0, done.stderr
    assert Run.read(tmp_path / "out" / "encoder=none").config.init == "words"
