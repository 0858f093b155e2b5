"""Trainings that are stopped, killed and gone on with: they end as if nothing had happened."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Process, ptexport
from safetensors.numpy import load_file


def command(llama: Path, rows_file: Path, out: Path, *more: str, epochs: int = 40) -> list[object]:
    given = {"model": llama, "data": rows_file, "template": "[P*2] {text} [P]", "labels": "positive=great,negative=bad"}
    options = {**given, "out": out, "epochs": epochs, "patience": epochs, "lr": 0.02}
    return ["train", *(word for name, value in options.items() for word in (f"--{name}", value)), *more]


def run(command: list[object]) -> subprocess.CompletedProcess[str]:
    return ptexport(*command)


def kill(command: list[object], state: Path, after_s: float) -> bool:
    """Kill it some time after it first kept its state; whether it was still training then."""
    before = state.stat().st_mtime_ns if state.exists() else None
    process = Process(*command)
    while process.running() and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.005)
    time.sleep(after_s)
    running = process.running()
    if running:
        process.send_signal(signal.SIGKILL)
    done = process.wait()
    assert running or done.returncode == 0, done.stderr
    return running


def metrics_of(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert metrics.pop("train_seconds") > 0
    return metrics


@pytest.fixture(scope="module")
def whole(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run(command(llama, rows_file, out))
    assert done.returncode == 0, done.stderr
    return out


def check_kills(n_kills: int, llama: Path, rows_file: Path, whole: Path, out: Path) -> None:
    """Kill and go on, until as many kills met a training under way; then compare all that was learned."""
    random_ = random.Random(0)
    going_on = command(llama, rows_file, out, "--resume")
    state = out.with_name("run.partial") / "resume.safetensors"
    met = 0
    while met < n_kills:
        if kill(going_on, state, random_.uniform(0, 0.12)):
            met += 1
        else:
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
    done = run(going_on)
    assert done.returncode == 0, done.stderr
    assert metrics_of(out) == metrics_of(whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    weights, expected = load_file(out / "weights.safetensors"), load_file(whole / "weights.safetensors")
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array)
    assert not out.with_name("run.partial").exists()


def test_killed_and_gone_on_with(llama: Path, rows_file: Path, whole: Path, tmp_path: Path) -> None:
    check_kills(3, llama, rows_file, whole, tmp_path / "run")


@pytest.mark.soak
def test_killed_twenty_times(llama: Path, rows_file: Path, whole: Path, tmp_path: Path) -> None:
    check_kills(20, llama, rows_file, whole, tmp_path / "run")


def test_a_run_that_is_finished_stays_as_it_is(llama: Path, rows_file: Path, whole: Path) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    done = run(command(llama, rows_file, whole, "--resume", "--json"))
    assert (done.returncode, json.loads(done.stdout)) == (0, json.loads(before["metrics.json"]))
    done = run(command(llama, rows_file, whole, "--resume", epochs=3))
    assert (done.returncode, "started with config.settings.epochs 40, got 3; give" in done.stderr) == (1, True)
    done = run(command(llama, rows_file, whole, "--resume", "--force"))
    assert done.returncode == 2
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_killed_while_the_state_is_written(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """What the library that writes it leaves behind then, under a name of its own."""
    out, state = tmp_path / "run", tmp_path / "run.partial" / "resume.safetensors"
    assert kill(command(llama, rows_file, out), state, 0)
    half_written = state.with_name(state.name + ".new")
    half_written.mkdir(exist_ok=True)
    (half_written / ".tmp1a2b3c").write_bytes(state.read_bytes()[:100])
    done = run(command(llama, rows_file, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_was_begun_is_not_overwritten_unasked(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    state = tmp_path / "run.partial" / "resume.safetensors"
    assert kill(command(llama, rows_file, out, epochs=2000), state, 0)
    done = run(command(llama, rows_file, out, epochs=2000))
    assert (
        done.returncode,
        "left by an interrupted run; continue with --resume, or start over with --force" in done.stderr,
    ) == (
        1,
        True,
    )
    done = run(command(llama, rows_file, out, "--resume", epochs=3))
    assert (done.returncode, "started with config.settings.epochs 2000, got 3" in done.stderr) == (1, True)
    state.write_bytes(state.read_bytes()[:1000])
    done = run(command(llama, rows_file, out, "--resume", epochs=2000))
    assert (done.returncode, "cannot be resumed from" in done.stderr) == (1, True)
    done = run(command(llama, rows_file, out, "--force", epochs=3))
    assert (done.returncode, metrics_of(out)["epochs"]) == (0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_killed_replacement_is_gone_on_with(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """The run that was there stays until the new one is done."""
    out, state = tmp_path / "run", tmp_path / "run.partial" / "resume.safetensors"
    assert run(command(llama, rows_file, out, epochs=2)).returncode == 0
    assert kill(command(llama, rows_file, out, "--force", epochs=80), state, 0)
    assert metrics_of(out)["epochs"] == 2
    done = run(command(llama, rows_file, out, "--resume", epochs=80))
    assert (done.returncode, metrics_of(out)["epochs"]) == (0, 80), done.stderr


def test_a_refusal_leaves_nothing(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """What was interrupted early enough to have something to show is refused under other options, and stays."""
    out, state = tmp_path / "run", tmp_path / "run.partial" / "resume.safetensors"
    assert kill(command(llama, rows_file, out, epochs=300), state, 0)
    kept = state.read_bytes()
    assert run(command(llama, rows_file, out, "--force", epochs=2)).returncode == 0
    (out / state.name).write_bytes(kept)  # as a training leaves it that Ctrl-C stopped
    done = run(command(llama, rows_file, out, "--resume", epochs=7))
    assert (done.returncode, "started with config.settings.epochs 300, got 7" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_not_ours_is_not_removed(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "holiday.jpg").touch()
    for option in ("--resume", "--force"):
        done = run(command(llama, rows_file, tmp_path / "run", option, epochs=1))
        assert (done.returncode, "holds 'holiday.jpg', a file that the new folder does not have" in done.stderr) == (
            1,
            True,
        )
    assert [path.name for path in (tmp_path / "run.partial").iterdir()] == ["holiday.jpg"]


def test_two_at_once_on_one_output(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    state = tmp_path / "run.partial" / "resume.safetensors"
    endless = command(llama, rows_file, out, epochs=10**7)
    first = Process(*endless)
    try:
        while not state.exists():
            assert first.running(), first.stderr()
            time.sleep(0.01)
        for option in ("--resume", "--force"):
            done = run([*endless, option])
            assert (done.returncode, "another ptexport is writing it" in done.stderr) == (1, True)
        assert first.running()
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
