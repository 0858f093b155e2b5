"""What takes minutes: `make soak`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

PREDICT = """
import re, sys
from ptexport.toolkit.cli.main import main
try:
    main()
finally:
    # Not getrusage's, which counts what the process that started this one had in memory.
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024, file=sys.stderr)
"""
N_ROWS = 200_000


def write_rows(path: Path, n: int) -> Path:
    lines = (json.dumps({"text": f"story {i} was {'very ' * (i % 7)}slow"}) + "\n" for i in range(n))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def command(bundle: Path, rows: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", PREDICT, "predict", str(bundle), "--input", str(rows), "--output", str(out), *more]


def peak_bytes(bundle: Path, rows: Path, out: Path) -> int:
    done = subprocess.run(command(bundle, rows, out), capture_output=True, text=True, check=True)
    return int(done.stderr)


@pytest.mark.soak
def test_two_hundred_thousand_rows_in_constant_memory_killed_and_gone_on_with(
    llama_bundle: Path, tmp_path: Path
) -> None:
    few, many = write_rows(tmp_path / "few.jsonl", 2000), write_rows(tmp_path / "many.jsonl", N_ROWS)
    little = peak_bytes(llama_bundle, few, tmp_path / "few-out.jsonl")
    much = peak_bytes(llama_bundle, many, tmp_path / "whole.jsonl")
    print(f"peak of 2,000 rows {little / 1e6:.0f} MB, of {N_ROWS:,} rows {much / 1e6:.0f} MB")
    assert much - little < 50e6

    out = tmp_path / "out.jsonl"
    process = subprocess.Popen(command(llama_bundle, many, out), stderr=subprocess.DEVNULL)
    while not (partial := list(tmp_path.glob("out.jsonl.*.partial"))) or partial[0].stat().st_size < 5e6:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = partial[0].read_bytes().count(b"\n")
    assert 0 < kept < N_ROWS
    subprocess.run(command(llama_bundle, many, out, "--resume"), check=True, stderr=subprocess.DEVNULL)
    with out.open(encoding="utf-8") as answers, many.open(encoding="utf-8") as rows:
        assert all(
            json.loads(answer)["text"] == json.loads(row)["text"] for answer, row in zip(answers, rows, strict=True)
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "few-out.jsonl",
        "few.jsonl",
        "many.jsonl",
        "out.jsonl",
        "whole.jsonl",
    ]
