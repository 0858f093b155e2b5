"""What needs no PyTorch does not import it: help, predictions, and whatever can be refused without a model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
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
def folder(llama: Path, roberta: Path, llama_bundle: Path, llama_run: Path, tmp_path: Path) -> Path:
    for name, path in (("model", llama), ("masked", roberta), ("bundle", llama_bundle), ("run", llama_run)):
        (tmp_path / name).symlink_to(path)
    lines = [f"{text},{'great' if label == 'positive' else 'bad'}\n" for text, label in ROWS]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "kept").mkdir()
    shutil.copytree(llama_run, tmp_path / "incomplete")
    (tmp_path / "incomplete" / "weights.safetensors").unlink()
    shutil.copytree(llama_run, tmp_path / "corrupt")
    (tmp_path / "corrupt" / "config.json").write_text("{")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("{")
    classifier, three = {"architectures": ["BertForSequenceClassification"]}, {"0": "a", "1": "b", "2": "c"}
    save(tmp_path / "classifier", classifier | {"id2label": three}, "model.safetensors")
    save(tmp_path / "pickled", classifier, "pytorch_model.bin")
    save(tmp_path / "score", classifier | {"id2label": {"0": "score"}}, "model.safetensors")
    save(tmp_path / "tags", classifier | {"problem_type": "multi_label_classification"}, "model.safetensors")
    for name, task in (("words", "CAUSAL_LM"), ("outputs", "SEQ_CLS")):
        record = {"peft_type": "LORA", "task_type": task, "base_model_name_or_path": "model"}
        save(tmp_path / name, record, "adapter_model.safetensors", config="adapter_config.json")
    return tmp_path


def save(folder: Path, record: dict[str, object], weights: str, *, config: str = "config.json") -> None:
    """Save a checkpoint that has a configuration, and a classification layer with two outputs as its only weights."""
    folder.mkdir()
    (folder / config).write_text(json.dumps(record))
    save_file({"base_model.model.score.weight": np.zeros((2, 4), np.float32)}, folder / weights)


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
    "predict nothing hello": "nothing: no such folder, need one made by 'ptexport export'",
    "install nothing.ptpack --backbone bundle --out new": "nothing.ptpack: ",
    "export nothing --out new": "nothing: no such folder",
    "export kept --out new": "kept: has neither metrics.json (a run), nor adapter_config.json",
    "export run --out kept": "kept: exists already",
    "export run --target tensorrt --opset 23 --out new": "tensorrt",
    "export run --labels a,b --out new": "--labels: is for PEFT adapters and classifiers",
    "export run --rows nothing.csv --out new": "nothing.csv: cannot be read",
    "export run --columns text=title --out new": "The options about columns go with --rows FILE",
    "export run --rows rows.csv --columns text=title --out new": "no column 'title', got ['text', 'label']",
    "export incomplete --out new": "incomplete/weights.safetensors: missing",
    "export corrupt --out new": "corrupt: not a run this version can read",
    "export run incomplete --out new": "incomplete/weights.safetensors: missing",
    "export run run --out new": "tasks: got the name",
    "export odd --out new": "odd/config.json: cannot be read",
    "export masked --out new": "holds a RobertaForMaskedLM, need a …ForSequenceClassification",
    "export classifier --rows nothing.csv --out new": "nothing.csv: cannot be read",
    "export classifier --model model --out new": "a classifier is its own model; leave out --model",
    "export classifier classifier --labels a,b --out new": "tasks: got the name classifier twice",
    "export words --out new": "has no label words; give --labels",
    "import classifier kept --out kept": "kept: exists already",
    "import classifier kept --out new": "kept: the folder has no config.json",
    "import classifier nothing/here --out new": "not in the cache",
    "import classifier masked --out new": "holds a RobertaForMaskedLM, need a …ForSequenceClassification",
    "import classifier pickled --out new": "has only pytorch_model.bin, a pickle",
    "import classifier score --out new": "is a regression, need a classifier of two or more labels",
    "import classifier tags --out new": "gives a text several labels (multi_label_classification)",
    "import classifier classifier --labels a,b --out new": "labels 'a,b': got 2, classifier has 3",
    "import classifier classifier --labels a=b,c=d --out new": "label 'a': has words, and a linear head uses none",
    "import classifier classifier --template '{text} it' --out new": "a classifier takes texts alone",
    "import classifier classifier --rows nothing.csv --out new": "nothing.csv: cannot be read",
    "import classifier classifier --rows rows.csv --text-format '{title}' --out new": "no column 'title'",
    "import peft kept --out new": "kept: not a PEFT adapter",
    "import peft words --labels a --out new": "need two or more different names",
    "import peft words --labels a=greats,b=bad --out new": "its word 'greats' is",
    "import peft words --labels great,bad --template '[P] {text}' --out new": "PEFT puts its virtual tokens first",
    "import peft words --labels great,bad --template '[p] {text}' --out new": "unknown placeholder '[p]'",
    "import peft words --labels great,bad --rows nothing.csv --out new": "nothing.csv: cannot be read",
    "import peft words --labels great,bad --model nothing/here --out new": "not in the cache",
    "import peft outputs --labels a,b,c --out new": "labels 'a,b,c': got 3, outputs has 2",
    "import peft outputs --template '{text}' --out new": "a classification layer takes the text alone",
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
