"""predict, evaluate, inspect and serve on a bundle of several tasks, as people use them."""

import json
from pathlib import Path

import httpx
import pytest
from commands import ptexport
from servers import serving

from ptexport.runtime import Engine

BOTH = Path(__file__).parents[2] / "golden" / "format-1" / "both"
TEXTS = [f"story {number} was slow" for number in range(20)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "positive"}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def labels() -> dict[str, list[str | None]]:
    """The label of each text by task."""
    with Engine.open(BOTH) as engine:
        return {name: [p.label for p in engine.predict(TEXTS, task=name)] for name in engine.tasks}


def test_predict_texts_for_one_task_or_all(labels: dict[str, list[str | None]]) -> None:
    done = ptexport("predict", BOTH, *TEXTS[:2], "--task", "mood")
    assert (done.returncode, done.stderr) == (0, "")
    columns = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(c[0], c[1], c[3]) for c in columns] == [("mood", labels["mood"][i], TEXTS[i]) for i in range(2)]
    done = ptexport("predict", BOTH, *TEXTS[:2], "--task", "all")
    columns = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(c[0], c[1], c[3]) for c in columns] == [
        (name, labels[name][i], TEXTS[i]) for i in range(2) for name in ("tone", "mood")
    ]


def test_predict_needs_a_task_of_the_bundle() -> None:
    done = ptexport("predict", BOTH, "slow")
    assert (done.returncode, "give --task NAME or --task all" in done.stderr) == (2, True)
    done = ptexport("predict", BOTH, "slow", "--task", "other")
    assert (done.returncode, "task 'other': unknown, need one of tone, mood" in done.stderr) == (1, True)


@pytest.mark.parametrize("task", ["tone", "all"])
def test_predict_a_file_and_resume(task: str, rows: Path, labels: dict[str, list[str | None]], tmp_path: Path) -> None:
    out, names = tmp_path / "out.jsonl", ["tone", "mood"] if task == "all" else [task]
    command = ("predict", BOTH, "--task", task, "--input", rows, "--output", out)
    done = ptexport(*command)
    assert (done.returncode, "20 rows" in done.stdout) == (0, True), done.stderr
    expected = [(TEXTS[i], name, labels[name][i]) for i in range(20) for name in names]

    def written() -> list[tuple[str, str, str]]:
        lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        return [(line["text"], line["task"], line["label"]) for line in lines]

    assert written() == expected
    digest = json.loads((BOTH / "manifest.json").read_bytes())["digest"]
    partial = tmp_path / f"out.jsonl.{digest[:8]}.{task}.partial"
    lines = out.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    out.unlink()
    done = ptexport(*command)
    assert (done.returncode, "begun before; continue with --resume" in done.stderr) == (1, True)
    done = ptexport(*command, "--resume", "--json")
    assert json.loads(done.stdout)["rows"] == 20 - 7 // len(names)
    assert written() == expected
    printed = ptexport("predict", BOTH, "--task", task, "--input", rows)
    assert [(line["text"], line["task"], line["label"]) for line in map(json.loads, printed.stdout.splitlines())] == (
        expected
    )


def test_evaluate_takes_a_task(rows: Path, labels: dict[str, list[str | None]]) -> None:
    done = ptexport("evaluate", BOTH, "--data", rows, "--task", "mood", "--json")
    assert done.returncode == 0, done.stderr
    (evaluation,) = json.loads(done.stdout)["evaluations"]
    assert (evaluation["bundle"], evaluation["task"], evaluation["n_rows"]) == ("both", "mood", 20)
    assert evaluation["accuracy"] == pytest.approx(labels["mood"].count("positive") / 20)
    done = ptexport("evaluate", BOTH, "--data", rows)
    assert (done.returncode, "task: got none, need one of tone, mood" in done.stderr) == (1, True)


def test_inspect_describes_every_task() -> None:
    record = json.loads(ptexport("inspect", BOTH, "--json").stdout)
    assert [task["name"] for task in record["tasks"]] == ["tone", "mood"]
    assert all("text" in task["template_tokens"] for task in record["tasks"])


def test_doctor_runs_every_task() -> None:
    record = json.loads(ptexport("doctor", "--run", BOTH, "--json").stdout)
    assert (record["bundle"], record["outcomes"][0]["error"]) == ("both", None)
    assert record["outcomes"][0]["among_neighbours"] < 1e-4


def test_serve_serves_every_task(labels: dict[str, list[str | None]]) -> None:
    with serving(BOTH) as record:
        assert [model["name"] for model in record["models"]] == ["tone", "mood"]
        body = {"texts": TEXTS, "task": "all"}
        got = httpx.post(f"{record['url']}/predict", json=body, timeout=60).json()["predictions"]
    for name, need in labels.items():
        assert [by_task[name]["label"] for by_task in got] == need
