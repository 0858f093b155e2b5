"""Measure packs on SmolLM2: size by number of leading virtual tokens, and install time compared with a copy.

usage: python examples/packs.py [FOLDER]

Times are medians of five runs of whole processes, with a warm page cache and after a sync of the disk. Three commands
alternate: `ptexport install`, the same with `--check`, and `cp` of the weights file alone.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

TOKENS = (3, 20, 24)


def main() -> None:
    """Run all measurements."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/pack_figures")
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "rows.jsonl"
    lines = [{"text": f"film {i} was {word}", "label": word} for i in range(8) for word in ("good", "bad")]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"smollm2 (from 4-bit weights), {len(os.sched_getaffinity(0))} CPUs")
    for n in TOKENS:
        run, pack = out / f"run-{n}", out / f"{n}.ptpack"
        if not pack.exists():
            what = ["--template", f"[P*{n}] {{text}} It was", "--labels", "good=good,bad=bad"]
            train = ["train", "--model", "smollm2", "--data", rows, *what, "--epochs", "1", "--max-length", "64"]
            ptexport(*train, "--force", "--out", run)
            ptexport("pack", run, "--out", pack)
        print(f"{n} leading virtual tokens: {pack.stat().st_size} bytes", flush=True)
    bundle = out / "bundle"
    if not bundle.exists():
        ptexport("export", out / f"run-{TOKENS[0]}", "--out", bundle)
    made = out / "made"
    install = ["ptexport", "install", out / "20.ptpack", "--backbone", bundle, "--out", made / "new"]
    calls = {
        "copy": ["cp", bundle / "model.onnx.data", made],
        "install": install,
        "install --check": [*install, "--check"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(5):
        for name, command in calls.items():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            os.sync()
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


def ptexport(*arguments: object) -> None:
    """Run a ptexport command."""
    subprocess.run(["ptexport", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
