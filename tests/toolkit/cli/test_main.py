"""The command line as people use it: answers, sentences and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ptexport
from tiny import Quiet

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export

README = Path(__file__).parents[3] / "README.md"


def test_predict_prints_answers_and_files_keep_order(llama_bundle: Path, tmp_path: Path) -> None:
    done = ptexport("predict", llama_bundle, "slow", "bright")
    assert done.returncode == 0
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == ["slow", "bright"]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": f"story {i}"}) + "\n" for i in range(1100)))
    assert ptexport("predict", llama_bundle, "--input", rows, "--output", out).returncode == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [f"story {i}" for i in range(1100)]
    done = ptexport("predict", llama_bundle, "--input", rows, "--output", out)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)


@pytest.mark.parametrize("option", [("--log-file", "log.jsonl"), ("--force",), ("--resume",)])
def test_what_is_about_an_output_needs_one(option: tuple[str, ...], llama_bundle: Path, tmp_path: Path) -> None:
    done = ptexport("predict", llama_bundle, "slow", option[0], *(tmp_path / name for name in option[1:]))
    assert (done.returncode, f"{option[0]} goes with --output" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got no rows"),
        (
            '{"text": "a", "label": "odd"}\n',
            "rows.jsonl line 1: got label 'odd', need one of ['positive', 'negative']; add it to --labels",
        ),
        ('{"text": "a", "label": "positive"}\n{"text": \n', "rows.jsonl line 2: not JSON"),
        ('{"words": "a", "label": "positive"}\n', "no column 'text'"),
        ('{"text": "a"}\n', "no label, need one of"),
    ],
)
def test_bad_rows_are_one_sentence(content: str, message: str, llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    out = tmp_path / "run"
    arguments = ("--model", llama, "--data", rows, "--labels", "positive=great,negative=bad", "--out", out)
    done = ptexport("train", *arguments, "--template", "[P] {text}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_bad_words_models_and_outputs_are_one_sentence(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    def refused(message: str, **changes: object) -> None:
        given = {"model": llama, "data": rows_file, "template": "[P] {text}", "out": tmp_path / "run"}
        given |= {"labels": "positive=great,negative=terrible", **changes}
        done = ptexport("train", *(word for name, value in given.items() for word in (f"--{name}", value)))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert message in done.stderr

    refused("need 1; similar single tokens", labels="positive=great,negative=terribles")
    refused("not an alias", model="nobody/nothing")
    refused("exists already", out=tmp_path)
    refused("which are not trained", manual="[P] {text}")
    refused("use the same", manual="{text} it is {text_b}")
    refused("need 1;", manual="{text} it", labels="positive=great,negative=terribles")
    assert ptexport("train").returncode == 2


def test_a_text_of_100_000_characters_is_truncated_and_a_missing_bundle_named(
    llama_bundle: Path, tmp_path: Path
) -> None:
    assert ptexport("predict", llama_bundle, "slow " * 20_000).returncode == 0
    done = ptexport("predict", tmp_path / "nothing", "slow")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "nothing: no such folder, need one made by 'ptexport export'" in done.stderr


def test_odd_texts_take_one_line_each_and_no_rows_are_no_answer(llama_bundle: Path, tmp_path: Path) -> None:
    done = ptexport("predict", llama_bundle, "line one\nline two", "tab\there")
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == ["line one line two", "tab here"]
    empty, out = tmp_path / "empty.csv", tmp_path / "out.jsonl"
    for content in ("", "text,label\n"):
        empty.write_text(content)
        for more in ((), ("--output", out)):
            done = ptexport("predict", llama_bundle, "--input", empty, *more)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert "empty.csv: got no rows, need at least one" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty.csv"]


def test_warnings_are_seen_where_no_terminal_is(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    given = ("--model", llama, "--data", rows_file, "--test", rows_file, "--template", "[P] {text}", "--epochs", 1)
    labels = ("--labels", "positive=great,negative=terrible,odd=maybe", "--out", tmp_path / "run")
    done = ptexport("train", *given, *labels)
    assert done.returncode == 0
    said = done.stderr.splitlines()
    warnings = [line for line in said if line.startswith("warning: ")]
    assert warnings[0] == "warning: no training row has the label 'odd'"
    assert warnings[1].endswith("test rows are in the training rows too; accuracy looks too good")
    assert len(warnings) == 2
    assert [line.split(" ")[0] for line in said[: -len(warnings)]] == ["data", "head", "full"]


def test_a_missing_package_says_what_to_install(llama_bundle: Path) -> None:
    for package, extra in (("uvloop", "serve"), ("starlette", "serve")):
        code = f"import sys; sys.modules[{package!r}] = None\nfrom ptexport.toolkit.cli.main import main\nmain()"
        command = [sys.executable, "-c", code, "serve", str(llama_bundle), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert f"pip install 'ptexport[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_commands_of_the_readme(llama_run: Path, tmp_path: Path) -> None:
    """Run them where the demo's bundle stands, with a small one in its place."""
    export(ExportConfig(runs=(llama_run,), out=tmp_path / "build" / "demo" / "bundle"), Quiet())
    (tmp_path / "examples").symlink_to(README.parent / "examples")
    blocks = [block.split("```")[0] for block in README.read_text(encoding="utf-8").split("```sh\n")[1:]]
    commands = [block for block in blocks if not block.startswith("make ") and "ptexport train" not in block]
    assert len(commands) == 3
    (tmp_path / ".venv").symlink_to(sys.prefix)
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}  # what a new shell has, whatever runs these tests
    for block in commands:
        assert subprocess.run(["sh", "-ec", block], cwd=tmp_path, capture_output=True, check=True, env=bare).stdout
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout


def test_the_input_is_not_overwritten(llama_bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text\na\n")
    done = ptexport("predict", llama_bundle, "--input", rows, "--output", rows, "--force")
    assert (done.returncode, f"{rows}: got the input as output, need another file; choose" in done.stderr) == (1, True)
    assert rows.read_text() == "text\na\n"


def test_failures_reach_the_log(llama_bundle: Path, tmp_path: Path) -> None:
    rows, log = tmp_path / "rows.csv", tmp_path / "log"
    rows.write_text("text\na\n")
    done = ptexport("evaluate", llama_bundle, "--data", rows, "--log-file", log)
    assert done.returncode == 1
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["message"]) == ("error", done.stderr.splitlines()[-1].removeprefix("ptexport: "))


def test_a_log_that_cannot_be_written_loses_no_work(llama_bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,positive\n")
    done = ptexport("evaluate", llama_bundle, "--data", rows, "--log-file", "/dev/full", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluations"][0]["n_rows"] == 1
    assert "takes no more lines (No space left on device)" in done.stderr
