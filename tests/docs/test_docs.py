"""The docs say what the product does: pages made by it are as it makes them, and every command is run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx_ir as ir
import pytest

from ptexport.exporters.operators import not_for_tensorrt

ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return [block.split("```")[0] for block in page.read_text(encoding="utf-8").split(f"```{language}\n")[1:]]


def test_the_command_reference_is_current() -> None:
    expected = load(ROOT / "docs" / "reference.py").reference()
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == expected, "run make docs"


def test_troubleshooting_is_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    bad_inputs = load(Path(__file__).parent / "bad_inputs.py")
    monkeypatch.setenv("COLUMNS", "200")
    with bad_inputs.tiny_workplace() as place:
        found = bad_inputs.page(place)
    assert (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8") == found, "run make docs"
    assert "Traceback" not in found
    assert "exit code 0" not in found


def run_commands(page: Path, place: Path) -> str:
    (place / ".venv").symlink_to(sys.prefix)
    (place / "examples").symlink_to(ROOT / "examples")
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    script = "\n".join(blocks(page, "sh"))
    done = subprocess.run(["sh", "-ec", script], cwd=place, env=bare, check=True, capture_output=True, text=True)
    return done.stdout


def test_the_methods(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "methods.md", tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")


def test_a_lower_precision(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "precision.md", tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")
    bundle = tmp_path / "build" / "precision" / "bundle"
    assert (bundle / "model.onnx.data").stat().st_size < 0.36 * 90_000_000, "MiniLM's in fp32"


def test_the_tutorial(tmp_path: Path) -> None:
    """Word for word, with the real model, from a folder laid out as the repository."""
    page = ROOT / "docs" / "tutorial.md"
    run_commands(page, tmp_path)
    assert not_for_tensorrt(ir.load(tmp_path / "build" / "tutorial" / "bundle" / "model.onnx")) == [], "a real BERT"
    answers = (tmp_path / "build" / "tutorial" / "answers.jsonl").read_text().splitlines()
    rows = (ROOT / "examples" / "requests.csv").read_text().splitlines()[1:]
    right = [json.loads(answer)["label"] == row.rsplit(",", 1)[1] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) > 50
    (code,) = blocks(page, "python")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert len(said.stdout.splitlines()) == 2


def test_a_multiple_choice(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "templates.md", tmp_path)
    assert "he dropped a hammer on his foot" in said or "he got a hole in his sock" in said
    lines = [(ROOT / "examples" / "causes.jsonl"), tmp_path / "build" / "choices" / "answers.jsonl"]
    rows, answers = ([json.loads(line) for line in path.read_text().splitlines()] for path in lines)
    right = [row["choices"][row["label"]] == answer["label"] for row, answer in zip(rows, answers, strict=True)]
    assert sum(right) > 40, "of 50, two candidates each"


def test_several_processes(tmp_path: Path) -> None:
    run_commands(ROOT / "docs" / "training.md", tmp_path)
    assert (tmp_path / "build" / "several" / "run" / "metrics.json").is_file()


def test_importing_what_peft_trained(tmp_path: Path) -> None:
    run_commands(ROOT / "docs" / "import.md", tmp_path)
    assert (tmp_path / "build" / "import" / "bundle" / "manifest.json").is_file()


def test_packing_and_installing(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "packs.md", tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")
    assert (tmp_path / "build" / "packs" / "task.ptpack").stat().st_size < 100_000


def test_signing(llama_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_bundle, tmp_path / "build" / "trust" / "bundle")
    said = run_commands(ROOT / "docs" / "trust.md", tmp_path)
    assert "Verification succeeded" in said
    (code,) = blocks(ROOT / "docs" / "trust.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_every_page_is_linked_and_runs_its_commands() -> None:
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{page}" in readme for page in pages)
    run = [page for page in pages if blocks(ROOT / "docs" / page, "sh")]
    assert run == [
        "import.md",
        "methods.md",
        "packs.md",
        "precision.md",
        "templates.md",
        "training.md",
        "trust.md",
        "tutorial.md",
    ]
