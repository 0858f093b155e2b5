"""Answers into a file: whole or not at all, private where the user's files are."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, OutputError
from ptexport.runtime.rows import Row
from ptexport.runtime.streaming import predict_rows, write_lines


def breaking_off() -> Iterator[bytes]:
    yield b"one\n"
    raise DataError("rows line 2: broken")


@pytest.mark.parametrize("old", [None, b"old\n"])
def test_nothing_is_left_of_a_file_that_breaks_off(old: bytes | None, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    if old is not None:
        out.write_bytes(old)
    with pytest.raises(DataError, match="broken"):
        write_lines(out, breaking_off(), force=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == ([("out.jsonl", old)] if old else [])


def test_the_umask_holds_and_force_replaces(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    old_mask = os.umask(0o077)
    try:
        write_lines(out, [b"one\n"], force=False)
    finally:
        os.umask(old_mask)
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputError, match="exists already; choose another name, or replace it with --force"):
        write_lines(out, [b"two\n"], force=False)
    write_lines(out, [b"two\n"], force=True)
    assert out.read_bytes() == b"two\n"
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\)"):
        write_lines(tmp_path / "nowhere" / "out.jsonl", [], force=False)


def test_a_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_lines, args=(pipe, [b"one\n", b"two\n"]), kwargs={"force": False})
    writer.start()
    assert pipe.read_bytes() == b"one\ntwo\n"
    writer.join()
    assert pipe.is_fifo()


def test_a_row_that_does_not_fit_is_named(llama_bundle: Path) -> None:
    rows = [Row(where="rows.csv line 2", text="slow"), Row(where="rows.csv line 3", text="slow", text_b="it")]
    with pytest.raises(DataError, match=r"rows\.csv line 3: has a 'text_b', the template takes none"):
        list(predict_rows(Engine.open(llama_bundle), rows))
