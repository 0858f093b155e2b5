"""Ctrl-C and a full disk, met by the commands themselves: one sentence, exit code 1, nothing half written."""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from commands import Process, ptexport, without_privileges
from tiny import sample

LABELS = "positive=great,negative=terrible"


def train_command(llama: Path, rows_file: Path, out: Path, *more: str) -> list[object]:
    given = {"model": llama, "data": rows_file, "template": "[P] {text}", "labels": LABELS, "out": out}
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", value)), *more]


def interrupt(command: list[object], after: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Send SIGINT when standard error has shown `after`."""
    process = Process(*command, XDG_CACHE_HOME=str(cache))
    while after not in process.stderr():
        assert process.running(), process.stderr()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    return process.wait()


def files_under(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_ctrl_c_in_training(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    command = train_command(
        llama, rows_file, tmp_path / "runs" / "run", "--epochs", "1000000", "--patience", "1000000", "--json"
    )
    done = interrupt(command, '"epoch": 2', tmp_path / "cache")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    last = done.stderr.splitlines()[-1]
    assert re.search(r"run: interrupted; holds the best of \d+ epochs, continue with --resume", last)
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert metrics["stopped"] == "interrupted"
    assert Process("export", tmp_path / "runs" / "run", "--out", tmp_path / "bundle").wait().returncode == 0
    done = interrupt([*command, "--resume"], f'"epoch": {metrics["epochs"] + 2}', tmp_path / "cache")
    assert (done.returncode, "resuming after" in done.stderr) == (1, True)
    assert json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())["epochs"] >= metrics["epochs"] + 2


def test_ctrl_c_while_tracing(llama_run: Path, tmp_path: Path) -> None:
    """Neither the bundle nor the cache holds anything, and the next export makes both."""
    command: list[object] = ["export", llama_run, "--out", tmp_path / "bundle", "--json"]
    done = interrupt(command, "tracing", tmp_path / "cache")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Aborted!")
    assert "Traceback" not in done.stderr
    assert files_under(tmp_path) == []
    done = Process(*command, XDG_CACHE_HOME=str(tmp_path / "cache")).wait()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def limited(command: list[object], largest_file_bytes: int, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run on a disk that takes no file larger than this (what a full one does, but each time at the same byte)."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
    return Process(*command, prepare=limit, XDG_CACHE_HOME=str(cache)).wait()


@pytest.mark.parametrize("largest_file_bytes", sample([100, 5_000, 50_000], 5_000))
def test_a_full_disk_in_training(largest_file_bytes: int, llama: Path, rows_file: Path, tmp_path: Path) -> None:
    command = train_command(llama, rows_file, tmp_path / "run", "--epochs", "1")
    done = limited(command, largest_file_bytes, tmp_path / "cache")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("command", ["train", "export", "predict", "evaluate"])
def test_a_read_only_folder(command: str, llama: Path, llama_run: Path, llama_bundle: Path, rows_file: Path,
                            tmp_path: Path) -> None:  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    out = folder / "out"
    commands: dict[str, list[object]] = {
        "train": train_command(llama, rows_file, out),
        "export": ["export", llama_run, "--out", out],
        "predict": ["predict", llama_bundle, "--input", rows_file, "--output", out],
        "evaluate": ["evaluate", llama_bundle, "--data", rows_file, "--html", out],
    }
    folder.chmod(0o500)
    done = Process(*commands[command], prepare=without_privileges).wait()
    folder.chmod(0o700)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert f"{out}: cannot be written (Permission denied)" in done.stderr
    assert files_under(tmp_path) == []


def test_ctrl_c_in_prediction(llama_bundle: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": f"story {i}"}) + "\n" for i in range(40_000)))
    command: list[object] = ["predict", llama_bundle, "--input", rows, "--output", out, "--json"]
    done = interrupt(command, '"event": "rows"', tmp_path / "cache")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.splitlines()[-1] == f"ptexport: {out}: interrupted; continue with --resume"
    assert ptexport(*command, "--resume").returncode == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [f"story {i}" for i in range(40_000)]


def test_a_full_disk_in_prediction(llama_bundle: Path, tmp_path: Path) -> None:
    """What was labelled stays, and the rest follows when there is room again."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": f"story {i}"}) + "\n" for i in range(3000)))
    command: list[object] = ["predict", llama_bundle, "--input", rows, "--output", out]
    done = limited(command, 50_000, tmp_path / "cache")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert (
        "cannot be written (File too large); check the path and its permissions, or free some space, and continue"
        in done.stderr
    )
    assert not out.exists()
    assert ptexport(*command, "--resume").returncode == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [f"story {i}" for i in range(3000)]
    assert files_under(tmp_path) == ["out.jsonl", "rows.jsonl"]


@pytest.mark.parametrize(
    ("traced", "largest_file_bytes"),
    sample(itertools.product([False, True], [1_000, 60_000, 110_000]), (False, 60_000), (True, 1_000)),
)
def test_a_full_disk_in_export(largest_file_bytes: int, traced: bool, llama_bundle: Path, llama_run: Path,
                               tmp_path: Path) -> None:  # fmt: skip
    """At the trace, and, with the backbone traced before (`llama_bundle`), at each of the bundle's files."""
    cache = Path(os.environ["XDG_CACHE_HOME"]) if traced else tmp_path / "cache"
    done = limited(["export", llama_run, "--out", tmp_path / "bundle"], largest_file_bytes, cache)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert files_under(tmp_path) == []
