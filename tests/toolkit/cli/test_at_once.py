"""What needs no PyTorch does not import it: help, predictions, and whatever can be refused without a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROWS

PROGRAM = """
import contextlib, io, json, shlex, sys
from ptexport.toolkit.cli.main import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["ptexport", *shlex.split(line)]
    said = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code
    heavy = sorted({"torch", "transformers", "datasets", "peft"} & set(sys.modules))
    print(json.dumps([code or 0, heavy, said.buffer.getvalue().decode()]))
"""


def outcomes(commands: list[str], folder: Path) -> list[tuple[int, list[str], str]]:
    """Run commands one after another in one fresh process; for each its exit code, what it imported, what it said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture
def folder(llama: Path, llama_bundle: Path, llama_run: Path, tmp_path: Path) -> Path:
    for name, path in (("model", llama), ("bundle", llama_bundle), ("run", llama_run)):
        (tmp_path / name).symlink_to(path)
    lines = [f"{text},{'great' if label == 'positive' else 'bad'}\n" for text, label in ROWS]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "kept").mkdir()
    return tmp_path


def test_what_runs_without_pytorch(folder: Path) -> None:
    commands = ["--help", *(f"{name} --help" for name in ("train", "export", "import peft", "serve", "bench speed"))]
    commands += ["inspect bundle", "doctor", "cache", "predict bundle 'a story'", "predict bundle --input rows.csv"]
    commands += ["evaluate bundle --data rows.csv --columns label=label --label-names great=positive,bad=negative"]
    for command, (code, heavy, said) in zip(commands, outcomes(commands, folder), strict=True):
        assert (command, code, heavy) == (command, 0, []), said


REFUSALS = {
    "--speed 3": "No such option",
    "--data nothing.csv": "nothing.csv: cannot be read",
    "--data kept": "kept: cannot be read (Is a directory)",
    "--data rows.xlsx": "got a name that ends in '.xlsx'",
    "--columns text=title": "no column 'title', got ['text', 'label']",
    "--columns title": "need PART=NAME",
    "--labels yes,no": "got label 'great', need one of ['yes', 'no']",
    "--labels great=greats,bad": "its word 'greats' is",
    "--columns label=text": "looks like free text",
    "--template '[p] {text}'": "unknown placeholder '[p]'",
    "--template '{text} and {text_b}'": "has no virtual token",
    "--template '[P] {text} and {text_b}'": "got no 'text_b', the template takes one",
    "--method fine-tune --head words": "head words: fine-tune has linear",
    "--lora-rank 4": "p-tuning does not use LoRA",
    "--method manual --template '{text} it' --lr 0.1": "manual trains no virtual tokens",
    "--out kept": "kept: exists already",
    "--model nothing/here": "not in the cache",
    "--sweep lr=fast": "'fast' is not a valid",
}

OTHERS = {
    "predict nothing hello": "nothing/manifest.json: missing",
    "install nothing.ptpack --backbone bundle --out new": "nothing.ptpack: ",
    "export nothing --out new": "nothing: no such folder",
    "export kept --out new": "kept: has neither metrics.json (a run), nor adapter_config.json",
    "export run --out kept": "kept: exists already",
    "export run --target tensorrt --opset 23 --out new": "tensorrt",
    "export run --labels a,b --out new": "--labels: is for PEFT adapters and classifiers",
    "import peft kept --out new": "kept: not a PEFT adapter",
    "import classifier kept --out kept": "kept: exists already",
}


def test_what_is_refused_without_pytorch(folder: Path) -> None:
    commands = [f"train --model model --data rows.csv --out new {options}" for options in REFUSALS]
    commands += OTHERS
    found = outcomes(commands, folder)
    messages = [*REFUSALS.values(), *OTHERS.values()]
    for command, message, (code, heavy, said) in zip(commands, messages, found, strict=True):
        assert (command, code in (1, 2), heavy) == (command, True, []), said
        assert message in said
    assert not (folder / "new").exists()


def test_control_training_imports_it(folder: Path) -> None:
    ((code, heavy, _),) = outcomes(["train --model model --data rows.csv --epochs 1 --out new"], folder)
    assert (code, "torch" in heavy, "transformers" in heavy) == (0, True, True)
