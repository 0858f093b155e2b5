"""The docs say what the product does: pages made by it are as it makes them, and every command is run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import msgspec
import onnx_ir as ir
import pytest
from commands import ptexport_on_path
from hub import running_hub
from tokenizers import Tokenizer, processors

import ptexport.runtime
from ptexport.exporters.targets.tensorrt import not_for_tensorrt
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, file_entry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.measured import GoldenRow
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.ort.graph import Graph

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
    """Run a page's shell blocks word for word, in a folder laid out as the repository; returns what they print.

    This process runs the commands of ptexport, so that PyTorch is loaded once.
    """
    return run_block("\n".join(blocks(page, "sh")), place)


def run_block(block: str, place: Path) -> str:
    with tempfile.TemporaryDirectory() as programs, ptexport_on_path(Path(programs)):
        (place / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        (place / ".venv" / "bin" / "activate").write_text(f'PATH="{programs}:{sys.prefix}/bin:$PATH"\n')
        return run_script(block, place)


def run_as_user(page: Path, place: Path) -> str:
    """The same, where each command is a process of its own."""
    (place / ".venv").symlink_to(sys.prefix)
    return run_script("\n".join(blocks(page, "sh")), place)


def run_script(script: str, place: Path) -> str:
    if not (place / "examples").exists():
        (place / "examples").symlink_to(ROOT / "examples")
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-ec", script], cwd=place, env=bare, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the first block of the page about methods, which trains."""
    place = tmp_path_factory.mktemp("methods")
    run_block(blocks(ROOT / "docs" / "methods.md", "sh")[0], place)
    return place


def test_the_methods(methods: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "methods.md", "sh")[1:]
    said = run_block(block, methods)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")


TUTORIAL = blocks(ROOT / "docs" / "tutorial.md", "sh")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the tutorial's first step, which trains."""
    place = tmp_path_factory.mktemp("tutorial")
    (place / ".venv").symlink_to(sys.prefix)
    run_script(TUTORIAL[0], place)
    return place


def test_a_lower_precision(tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(tutorial / "build" / "tutorial" / "run", tmp_path / "build" / "tutorial" / "run")
    said = run_commands(ROOT / "docs" / "precision.md", tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")
    bundle = tmp_path / "build" / "tutorial" / "int8-bundle"
    assert (bundle / "model.onnx.data").stat().st_size < 0.36 * 90_000_000, "MiniLM's in fp32"


@pytest.mark.parametrize("number", [1, 2, pytest.param(3, marks=pytest.mark.soak)])
def test_the_tutorial(number: int, tutorial: Path) -> None:
    """Word for word and step by step, with the real model; each command is a process of its own."""
    assert len(TUTORIAL) == 4
    run_script(f". .venv/bin/activate\n{TUTORIAL[number]}", tutorial)


def test_the_readme_trains_as_the_tutorial_does() -> None:
    (block,) = (block for block in blocks(ROOT / "README.md", "sh") if "ptexport train" in block)
    assert set(block.splitlines()) <= set("\n".join(TUTORIAL).splitlines())


def test_what_the_tutorial_makes(tutorial: Path) -> None:
    assert not_for_tensorrt(ir.load(tutorial / "build" / "tutorial" / "bundle" / "model.onnx")) == [], "a real BERT"
    answers = (tutorial / "build" / "tutorial" / "answers.jsonl").read_text().splitlines()
    rows = [row.split(";") for row in (ROOT / "examples" / "tickets.csv").read_text().splitlines()[1:]]
    joined = [(json.loads(answer), row) for answer, row in zip(answers, rows, strict=True)]
    assert all(answer["id"] == row[0] for answer, row in joined)
    assert sum(answer["label"] == row[2] for answer, row in joined) > 50
    (code,) = blocks(ROOT / "docs" / "tutorial.md", "python")
    said = subprocess.run([sys.executable, "-c", code], cwd=tutorial, check=True, capture_output=True, text=True)
    assert len(said.stdout.splitlines()) == 2


def test_a_multiple_choice(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "templates.md", tmp_path)
    assert "he dropped a hammer on his foot" in said or "he got a hole in his sock" in said
    lines = [(ROOT / "examples" / "causes.jsonl"), tmp_path / "build" / "choices" / "answers.jsonl"]
    rows, answers = ([json.loads(line) for line in path.read_text().splitlines()] for path in lines)
    right = [row["choices"][row["label"]] == answer["label"] for row, answer in zip(rows, answers, strict=True)]
    assert sum(right) > 40, "of 50, two candidates each"


RECIPES = blocks(ROOT / "docs" / "recipes.md", "sh")


@pytest.mark.soak
def test_the_recipes(tmp_path: Path) -> None:
    said = run_block("\n".join(RECIPES), tmp_path)
    assert [line.split("\t")[0] for line in said.splitlines() if line.endswith(("again", "apart"))] == [
        "positive",
        "negative",
    ]
    assert said.splitlines()[-1].split()[0] == "1060"


def test_recipes_are_short() -> None:
    assert all(len(block.splitlines()) <= 15 for block in RECIPES)


@pytest.mark.soak
def test_several_processes(tmp_path: Path) -> None:
    run_as_user(ROOT / "docs" / "training.md", tmp_path)
    assert (tmp_path / "build" / "several" / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("number", "bundle"), [(0, "classifier-bundle"), pytest.param(1, "bundle", marks=pytest.mark.soak)]
)
def test_importing_what_was_trained_elsewhere(number: int, bundle: str, tmp_path: Path) -> None:
    page = blocks(ROOT / "docs" / "import.md", "sh")
    assert len(page) == 2
    said = run_block(page[number], tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")
    assert (tmp_path / "build" / "import" / bundle / "manifest.json").is_file()


def test_packing_and_installing(tmp_path: Path) -> None:
    said = run_commands(ROOT / "docs" / "packs.md", tmp_path)
    assert said.splitlines()[-1].split("\t")[0] in ("billing", "delivery", "technical")
    assert (tmp_path / "build" / "packs" / "task.ptpack").stat().st_size < 100_000
    (code,) = blocks(ROOT / "docs" / "packs.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [said.splitlines()[-1].split("\t")[0], "True"]


@pytest.mark.soak
def test_benchmarks(llama_bundle: Path, llama_run: Path, rows_file: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_bundle, tmp_path / "build" / "demo" / "bundle")
    shutil.copytree(llama_run, tmp_path / "build" / "demo" / "run")
    shutil.copy(rows_file, tmp_path)
    run_commands(ROOT / "docs" / "benchmarks.md", tmp_path)
    reports = sorted((tmp_path / "build" / "bench").glob("*/report.json"))
    assert [json.loads(path.read_text())["left_out"] for path in reports] == [{}] * len(reports)


def test_what_runs_a_bundle(llama_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_bundle, tmp_path / "build" / "demo" / "bundle")
    run_commands(ROOT / "docs" / "providers.md", tmp_path)
    assert json.loads((tmp_path / "build" / "report.json").read_text())["outcomes"][0]["error"] is None
    (code,) = blocks(ROOT / "docs" / "providers.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith(("CPUExecutionProvider ", "CUDAExecutionProvider "))


def test_the_gpu_proof(llama_bundle: Path, tmp_path: Path) -> None:
    """Where there is a GPU it runs for minutes; here every step says why it does not."""
    shutil.copytree(llama_bundle, tmp_path / "build" / "demo" / "bundle")
    said = run_commands(ROOT / "docs" / "gpu.md", tmp_path)
    assert (tmp_path / "build" / "gpu" / "report" / "report.html").is_file()
    assert ("no GPU was proved" in said) == ("is proved: every" not in said)


def test_the_hub(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command in a process of its own, since this one has loaded huggingface_hub offline."""
    shutil.copytree(llama_bundle, tmp_path / "build" / "demo" / "bundle")
    with running_hub() as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        said = run_as_user(ROOT / "docs" / "hub.md", tmp_path)
        assert said.splitlines()[0].startswith(f"{hub.url}/you/reviews/commit/")
        assert said.splitlines()[1].split("\t")[0] in ("positive", "negative")
        (code,) = blocks(ROOT / "docs" / "hub.md", "python")
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("[Prediction(label=")


def test_the_server(tmp_path: Path) -> None:
    """Trained and packed in this process, served by processes of their own."""
    train, serve, pack, watch = blocks(ROOT / "docs" / "server.md", "sh")
    for block in (train, pack):
        run_block(block, tmp_path)
    shutil.rmtree(tmp_path / ".venv")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    said = run_script(serve, tmp_path)
    assert '"predictions":[{"label":"' in said
    assert said.count("[0.") >= 2, "by Triton's client"
    assert '"urgency":{"label":"' in run_script(watch, tmp_path)


def test_signing(llama_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_bundle, tmp_path / "build" / "trust" / "bundle")
    said = run_commands(ROOT / "docs" / "trust.md", tmp_path)
    assert "Verification succeeded" in said
    (code,) = blocks(ROOT / "docs" / "trust.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.fixture(scope="module")
def pairs_bundle(llama_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's graph behind a template of two texts."""
    bundle = Path(shutil.copytree(llama_bundle, tmp_path_factory.mktemp("pairs") / "bundle"))
    tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    (bundle / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "")
    files = {name: file_entry(bundle / name) for name in manifest.files}
    encoder = TextEncoder.from_json(tokenizer.to_str(), fields=["text", "text_b"])
    logits = Graph.open(bundle / MODEL).run(encoder.pad(encoder.encode([("Oslo", "Lima")])))[0].tolist()
    golden = [GoldenRow(texts=["Oslo", "Lima"], logits=dict(zip(manifest.task.labels or [], logits, strict=True)))]
    task = msgspec.structs.replace(manifest.task, fields=["text", "text_b"], golden=golden)
    changed = msgspec.structs.replace(manifest, files=files, tasks=[task])
    (bundle / "manifest.json").write_bytes(changed.to_json())
    return bundle


def test_the_programs_of_embedding(llama_bundle: Path, pairs_bundle: Path, tmp_path: Path) -> None:
    versions = load(ROOT / "examples" / "versions.py")
    done = list(versions.run_programs(sys.executable, llama_bundle, pairs_bundle, tmp_path))
    assert [program.stderr for program in done] == [""] * 9
    said = [program.stdout for program in done]
    assert said[2] == "3000\n"
    assert "was opened before this process was forked" in said[5]
    assert said[7].startswith("engine: is closed; open the bundle again\n['positive', 'negative'] ")


def test_the_public_names() -> None:
    """What is stable; a name goes with a line in the changelog only."""
    errors = [
        "BundleError",
        "BusyError",
        "DataError",
        "EngineError",
        "HubError",
        "MissingExtraError",
        "PackError",
        "ProviderError",
        "PtexportError",
    ]
    names = sorted(["Batcher", "Engine", "EngineInfo", "Prediction", "SignatureError", "Task", *errors])
    assert ptexport.runtime.__all__ == names
    assert all(getattr(ptexport.runtime, name).__doc__ for name in names)


def test_every_page_is_linked_and_runs_its_commands() -> None:
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{page}" in readme for page in pages)
    run = [page for page in pages if blocks(ROOT / "docs" / page, "sh")]
    assert run == [
        "benchmarks.md",
        "gpu.md",
        "hub.md",
        "import.md",
        "methods.md",
        "packs.md",
        "precision.md",
        "providers.md",
        "recipes.md",
        "server.md",
        "templates.md",
        "training.md",
        "trust.md",
        "tutorial.md",
    ]
