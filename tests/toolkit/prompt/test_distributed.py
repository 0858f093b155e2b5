"""Two processes on the CPU, started by `accelerate launch`, train what one would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from tiny import LABELS, Quiet, sample

from ptexport.runtime.errors import TrainError
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.plan import make_plan

BIN = Path(sys.executable).parent
LAUNCH = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
CASES = {
    "p-tuning": ("{text} it was [P*2]", ["--lr", "0.005"]),
    "leading": ("[P*2] {text} it was", ["--lr", "0.005"]),
    "lora": ("{text} it was", ["--backbone-lr", "0.001"]),
}


def train(out: Path, model: Path, rows: Path, case: str, *more: str, launch: list[object]) -> str:
    """Train, and return the exit code and what was printed; the last batch of 28 rows is of one row alone."""
    template, rates = CASES[case]
    options = ["--model", model, "--data", rows, "--labels", LABELS, "--template", template, "--max-length", "48"]
    options += ["--method", "lora" if case == "lora" else "p-tuning", "--epochs", "2", "--batch-size", "9", *rates]
    done = subprocess.run(
        [*map(str, launch), "train", *map(str, options), "--out", str(out), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = {f"run.{name}": array for name, array in load_file(folder / "weights.safetensors").items()}
    if (folder / "backbone").exists():
        found |= load_file(folder / "backbone" / "model.safetensors")
    return found


def furthest(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max(initial=0)) for name in one)


@pytest.fixture(scope="module")
def alone(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Train a case in one process, once."""
    folder = tmp_path_factory.mktemp("alone")

    def trained(case: str) -> Path:
        if not (folder / case).exists():
            said = train(folder / case, llama, rows_file, case, "--json", launch=[BIN / "ptexport"])
            assert said.startswith("0\n"), said
        return folder / case

    trained("p-tuning")
    return trained


@pytest.mark.parametrize("case", sample(CASES, "p-tuning"))
def test_two_processes_train_what_one_would(
    case: str, alone: Callable[[str], Path], llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    together = tmp_path / "together"
    said = train(together, llama, rows_file, case, "--json", launch=[*LAUNCH, BIN / "ptexport"])
    assert said.startswith("0\n"), said
    assert said.count('"event": "done"') == 1  # one of the two is watched
    # Adam's steps are as large as the rate even where a gradient is hardly more than rounding.
    assert furthest(weights(alone(case)), weights(together)) < 1e-4
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (alone(case), together))
    for name in ("train_seconds", "versions"):
        assert first.pop(name)
        assert second.pop(name)
    assert first == second


DEAF = """
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.cli.main import main

distributed.add_gradients = lambda parameters: None
main()
"""


def test_processes_that_do_not_add_their_gradients_train_something_else(
    alone: Callable[[str], Path], llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "deaf.py").write_text(DEAF, encoding="utf-8")
    said = train(tmp_path / "deaf", llama, rows_file, "p-tuning", launch=[*LAUNCH, tmp_path / "deaf.py"])
    assert said.startswith("0\n"), said
    assert furthest(weights(alone("p-tuning")), weights(tmp_path / "deaf")) > 1e-3


def test_an_error_ends_all_and_no_process_says_it_twice(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    launch = [*LAUNCH, BIN / "ptexport"]
    said = train(tmp_path / "run", llama, rows_file, "p-tuning", "--labels", "one=great", launch=launch)
    assert not said.startswith("0\n")
    # The launcher ends the other process when one has failed, which may be before it says anything.
    error = "labels 'one=great': got ['one'], need two or more different names"
    counts = [said.count(f"{name}: {error}") for name in ("ptexport", "ptexport, process 1")]
    assert counts in ([1, 1], [1, 0], [0, 1]), said
    assert not (tmp_path / "run").exists()


def test_what_several_processes_cannot_do(monkeypatch: pytest.MonkeyPatch, llama: Path, rows_file: Path) -> None:
    options = {"model": str(llama), "data": str(rows_file), "labels": LABELS, "settings": TrainSettings()}
    inputs = read_inputs(TrainConfig(template="{text} [P]", device="cpu", **options), Quiet())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(TrainError, match="device cpu: each of several processes has its own; leave it out"):
        make_plan(inputs, Quiet(), None)
    with pytest.raises(TrainError, match="manual: takes no optimizer steps and needs one process"):
        read_inputs(TrainConfig(template="{text} it", method="manual", **options), Quiet())
    given = ["--model", "m", "--data", "d", "--labels", "l", "--template", "t", "--out", "o", "--sweep", "lr=1e-3"]
    assert "--sweep is for one process" in CliRunner().invoke(cli, ["train", *given]).output
