"""Answers into a file: all of them or none, gone on with after a kill, private where the user's files are."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, OutputError
from ptexport.runtime.label_file import Counts, label_file
from ptexport.runtime.label_rows import predict_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.store.files import write_whole

N_ROWS = 2500


@pytest.fixture(scope="module")
def engine(llama_bundle: Path) -> Engine:
    return Engine.open(llama_bundle)


def rows(n: int = N_ROWS) -> Iterator[Row]:
    return (Row(where=f"rows line {i}", text=f"story {i % 50} é") for i in range(1, n + 1))


def label(engine: Engine, given: Iterator[Row], path: Path, *, resume: bool = False, force: bool = False) -> list[int]:
    done: list[int] = []
    label_file(engine, given, path, resume=resume, force=force, strict=False, top_k=None, report=done.append)
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def partial_of(engine: Engine, path: Path) -> Path:
    return path.with_name(f"{path.name}.{engine.manifest.digest[:8]}.partial")


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert label(engine, rows(), out) == [1024, 2048, N_ROWS]
    assert names(out.parent) == ["out.jsonl"]
    assert [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()] == [
        row.text for row in rows()
    ]
    return out.read_bytes()


@pytest.mark.parametrize("kept_bytes", [0, 10, 5_000, 150_000])
def test_it_goes_on_after_the_rows_that_are_there(
    kept_bytes: int, engine: Engine, whole: bytes, tmp_path: Path
) -> None:
    """As after a kill: any number of bytes may have reached the disk, the last line cut short."""
    out = tmp_path / "out.jsonl"
    partial_of(engine, out).write_bytes(whole[:kept_bytes])
    with pytest.raises(OutputError, match="begun before; continue with --resume, or start again with --force"):
        label(engine, rows(), out)
    done = label(engine, rows(), out, resume=True)
    assert done[-1] == N_ROWS
    assert [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()] == [
        row.text for row in rows()
    ]
    kept = whole[: whole.rfind(b"\n", 0, kept_bytes) + 1]
    assert out.read_bytes().startswith(kept)
    assert names(tmp_path) == ["out.jsonl"]
    with pytest.raises(OutputError, match="got fewer rows than the input; start again with --force"):
        label(engine, rows(N_ROWS + 1), out, resume=True)
    with pytest.raises(
        OutputError, match="its rows or kept columns differ from the input's from the end of the input on"
    ):
        label(engine, rows(N_ROWS - 1), out, resume=True)
    before = out.stat().st_mtime_ns
    assert label(engine, rows(), out, resume=True) == [N_ROWS]
    assert out.stat().st_mtime_ns == before


def test_what_another_bundle_answered_is_not_taken_for_one_s_own(
    engine: Engine, bert_bundle: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out.jsonl", Engine.open(bert_bundle)
    label(other, rows(20), out)
    finished = out.read_bytes()
    with pytest.raises(
        OutputError, match="got predictions of another bundle or --top-k; choose another name, or use --force"
    ):
        label(engine, rows(20), out, resume=True)
    partial_of(engine, out).write_bytes(b"")
    with pytest.raises(OutputError, match=r"exists already, and .* was begun for it; remove one of them"):
        label(engine, rows(20), out, resume=True)
    assert out.read_bytes() == finished
    out.write_bytes(b"".join(b'{"text":"%s","label":"x"}\n' % row.text.encode() for row in rows(20)))
    partial_of(engine, out).unlink()
    with pytest.raises(OutputError, match="got predictions of another bundle"):
        label(engine, rows(20), out, resume=True)


def test_what_was_truncated_before_is_refused_too(engine: Engine, tmp_path: Path) -> None:
    def long() -> Iterator[Row]:
        return iter([Row(where="rows line 1", text='"truncated":true'), Row(where="rows line 2", text="slow " * 200)])

    out = tmp_path / "out.jsonl"
    for name in (out, partial_of(engine, out)):
        label(engine, long(), out, force=True)
        out.replace(name)
        with pytest.raises(DataError, match="rows line 2: got a text longer than the"):
            label_file(engine, long(), out, resume=True, force=False, strict=True, top_k=None, report=lambda done: None)
        name.unlink()


def test_a_broken_row_keeps_those_before_it(engine: Engine, whole: bytes, tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield from rows(1500)
        raise DataError("rows line 1501: broken")

    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="line 1501: broken"):
        label(engine, broken(), out)
    assert names(tmp_path) == [partial_of(engine, out).name]
    assert partial_of(engine, out).read_bytes().count(b"\n") == 1024  # whole chunks
    label(engine, rows(), out, resume=True)
    assert out.read_bytes().count(b"\n") == N_ROWS
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(DataError, match="takes none"):
        label(engine, iter([Row(where="rows line 1", text="a", text_b="b")]), out)
    assert names(tmp_path) == []


def test_other_rows_are_not_mixed_in(engine: Engine, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    partial = partial_of(engine, out)
    partial.write_bytes(whole[:5000])
    others = (Row(where=row.where, text=row.text + "!") if i == 3 else row for i, row in enumerate(rows()))
    with pytest.raises(
        OutputError, match=r"its rows or kept columns differ from the input's from rows line 4 on; start again"
    ):
        label(engine, others, out, resume=True)
    assert partial.read_bytes() == whole[:5000]
    with pytest.raises(
        OutputError, match=r"its rows or kept columns differ from the input's from the end of the input on"
    ):
        label(engine, rows(2), out, resume=True)
    label(engine, rows(2), out, force=True)
    assert out.read_bytes().count(b"\n") == 2


def test_one_writer_at_a_time(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def second_writer() -> Iterator[Row]:
        yield from rows(1100)
        with pytest.raises(OutputError, match="another ptexport is writing this file"):
            label(engine, rows(2), out, force=True)
        yield from rows(1)

    label(engine, second_writer(), out)
    assert out.read_bytes().count(b"\n") == 1101


def test_the_umask_holds_and_only_force_replaces(engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    old_mask = os.umask(0o077)
    try:
        label(engine, rows(2), out)
    finally:
        os.umask(old_mask)
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputError, match="exists already; choose another name, or replace it with --force"):
        label(engine, rows(1), out)
    label(engine, rows(1), out, force=True)
    assert out.read_bytes().count(b"\n") == 1
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\)"):
        label(engine, rows(1), tmp_path / "nowhere" / "out.jsonl")


def test_a_pipe_is_written_to_as_it_is(engine: Engine, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=label, args=(engine, rows(2), pipe), daemon=True)
    writer.start()
    read = subprocess.run(["cat", pipe], check=True, capture_output=True, timeout=60)
    assert read.stdout.count(b"\n") == 2
    writer.join()
    assert names(tmp_path) == ["pipe"]


def test_a_row_that_does_not_fit_is_named(engine: Engine) -> None:
    given = [Row(where="rows.csv line 2", text="slow"), Row(where="rows.csv line 3", text="slow", text_b="it")]
    with pytest.raises(DataError, match=r"rows\.csv line 3: got a 'text_b', the template takes none"):
        list(predict_rows(engine.task(), given))


def test_a_whole_file_or_none(tmp_path: Path) -> None:
    write_whole(tmp_path / "page", b"one", force=False)
    with pytest.raises(OutputError, match="exists already"):
        write_whole(tmp_path / "page", b"two", force=False)
    write_whole(tmp_path / "page", b"two", force=True)
    assert (tmp_path / "page").read_bytes() == b"two"
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "nowhere" / "page", b"one", force=False)
    assert names(tmp_path) == ["page"]


def test_long_texts_are_counted_or_refused(engine: Engine, tmp_path: Path) -> None:
    given = [Row(where=f"rows line {i}", text="slow " * n) for i, n in enumerate((1, 200, 3, 300), 1)]
    out = tmp_path / "out.jsonl"
    options: dict[str, Any] = {"resume": False, "force": False, "top_k": None, "report": lambda done: None}
    assert label_file(engine, iter(given), out, strict=False, **options) == Counts(rows=4, truncated=2)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("truncated", False) for line in lines] == [False, True, False, True]
    with pytest.raises(
        DataError, match=r"rows line 2: got a text longer than the \d+ tokens of the bundle; shorten it"
    ):
        label_file(engine, iter(given), tmp_path / "strict.jsonl", strict=True, **options)


@pytest.fixture(scope="module")
def both() -> Engine:
    """A bundle of two tasks, tone and mood."""
    return Engine.open(Path(__file__).parents[1] / "golden" / "format-1" / "both")


def label_tasks(engine: Engine, given: Iterator[Row], path: Path, task: str | None, *, resume: bool = False) -> Counts:
    options: dict[str, Any] = {"force": False, "strict": False, "top_k": None, "report": lambda done: None}
    return label_file(engine, given, path, task=task, resume=resume, **options)


def test_a_row_has_a_line_per_task(both: Engine, tmp_path: Path) -> None:
    given = [row.text for row in rows(30)]
    need = {name: both.predict(given, task=name) for name in both.tasks}
    for task, tasks in (("all", ["tone", "mood"]), ("mood", ["mood"])):
        out = tmp_path / f"{task}.jsonl"
        assert label_tasks(both, rows(30), out, task).rows == 30
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [(line["text"], line["task"]) for line in lines] == [(text, name) for text in given for name in tasks]
        for line, (number, name) in zip(lines, ((n, name) for n in range(30) for name in tasks), strict=True):
            assert line["label"] == need[name][number].label
            assert line["probabilities"] == pytest.approx(need[name][number].probabilities, abs=1e-5)
    with pytest.raises(DataError, match="task: got none, need one of tone, mood"):
        label_tasks(both, rows(30), tmp_path / "none.jsonl", None)
    with pytest.raises(DataError, match="task 'other': unknown"):
        label_tasks(both, rows(30), tmp_path / "none.jsonl", "other")
    assert names(tmp_path) == ["all.jsonl", "mood.jsonl"]


@pytest.mark.parametrize("kept_lines", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("cut_bytes", [0, 9])
def test_resume_after_a_cut_within_the_lines_of_a_row(
    kept_lines: int, cut_bytes: int, both: Engine, tmp_path: Path
) -> None:
    """A row whose lines are not all there is predicted again, all its lines."""
    out = tmp_path / "out.jsonl"
    label_tasks(both, rows(6), out, "all")
    whole = out.read_bytes()
    out.unlink()
    lines = whole.splitlines(keepends=True)
    partial = tmp_path / f"out.jsonl.{both.manifest.digest[:8]}.all.partial"
    partial.write_bytes(b"".join(lines[:kept_lines]) + lines[kept_lines][:cut_bytes])
    assert label_tasks(both, rows(6), out, "all", resume=True).rows == 6 - kept_lines // 2
    assert [line.rpartition(b'"probabilities"')[0] for line in out.read_bytes().splitlines()] == [
        line.rpartition(b'"probabilities"')[0] for line in whole.splitlines()
    ]
    assert out.read_bytes().startswith(b"".join(lines[: kept_lines // 2 * 2]))
    assert label_tasks(both, rows(6), out, "all", resume=True) == Counts(), "it is finished"
    assert names(tmp_path) == ["out.jsonl"]


def test_predictions_of_other_tasks_are_not_mixed(both: Engine, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    label_tasks(both, rows(20), out, "tone")
    for task in ("mood", "all"):
        with pytest.raises(OutputError, match="its rows or kept columns differ from the input's from rows line 1 on"):
            label_tasks(both, rows(20), out, task, resume=True)
    assert label_tasks(both, rows(20), out, "tone", resume=True) == Counts()
    out.rename(tmp_path / f"other.jsonl.{both.manifest.digest[:8]}.tone.partial")
    assert label_tasks(both, rows(20), tmp_path / "other.jsonl", "mood", resume=True).rows == 20, "another partial file"


def test_long_texts_of_several_tasks_are_counted_or_refused(both: Engine, tmp_path: Path) -> None:
    given = [Row(where=f"rows line {i}", text="slow " * n) for i, n in enumerate((1, 200, 3), 1)]
    assert label_tasks(both, iter(given), tmp_path / "out.jsonl", "all") == Counts(rows=3, truncated=1)
    options: dict[str, Any] = {"resume": False, "force": False, "top_k": None, "report": lambda done: None}
    with pytest.raises(DataError, match=r"rows line 2: got a text longer than the \d+ tokens"):
        label_file(both, iter(given), tmp_path / "strict.jsonl", task="all", strict=True, **options)
