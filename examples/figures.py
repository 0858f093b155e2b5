"""Measure the figures in the README on this machine, in about a quarter of an hour on 2 cores.

usage: python examples/figures.py [FOLDER]

Prints each figure with its limit and writes FOLDER/figures.json. Times are of a whole process or of one call in a fresh
process, as the line states. Memory is the peak memory of the process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MANUAL = (
    "The city of {text} is in",
    "{text} is a city on the continent of",
    "{text} is located in the continent of",
    "Question: On which continent is {text}? Answer:",
    "{text} :",
)
TEMPLATE = "The city of {text} is in [P*3]"
SEEDS = (0, 1, 2)

BAKE = """
import sys, tempfile, time
from pathlib import Path
from ptexport.exporters.bake import bake
from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.trace.cached import Trace, trace_key
from ptexport.runtime.cache_dir import cache_home
from ptexport.toolkit.run.run import Run
run = Run.read(Path(sys.argv[1]))
joint = JointTasks({"city": run})
key = trace_key(run.config.facts, run.config.pooling, has_prefix_kv=run.arrays.has_prefix_kv, opset=18)
seconds = []
for _ in range(3):
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        started = time.perf_counter()
        bake(joint, Trace.read(cache_home() / "traces" / key), Path(folder))
        seconds.append(time.perf_counter() - started)
assert "torch" not in sys.modules
print(sorted(seconds)[1])
"""

EXPORT = """
import re, sys
from ptexport.toolkit.cli.main import main
try:
    main()
finally:
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""

OPEN = """
import re, sys, time
started = time.perf_counter()
from ptexport.runtime import Engine
Engine.open(sys.argv[1]).predict(["Nairobi"])
seconds = time.perf_counter() - started
# Not from getrusage, which includes the memory of the parent process.
print(seconds, int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def main() -> None:
    """Run all measurements."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/figures")
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, object] = {"cpus": len(os.sched_getaffinity(0))}
    figures |= accuracy(out)
    figures |= export(out)
    figures |= serve_cold(out / "bundle")
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def accuracy(out: Path) -> dict[str, object]:
    """Compare learned prompts with the best of five hand-written templates, which is chosen on the test rows."""
    metrics = []
    for seed in SEEDS:
        manual = [word for template in MANUAL for word in ("--manual", template)]
        ptexport(
            "train", "--model", "smollm2", "--data", "cities", "--template", TEMPLATE,
            "--epochs", "4", "--patience", "4", "--seed", str(seed),
            "--out", str(out / f"run{seed}"), "--force", *manual,
        )  # fmt: skip
        metrics.append(json.loads((out / f"run{seed}" / "metrics.json").read_text()))
    learned = [m["test_accuracy"] for m in metrics]
    gains = [m["test_accuracy"] - max(m["manual_accuracy"].values()) for m in metrics]
    report("learned prompt, test accuracy, mean of 3 seeds", f"{statistics.mean(learned):.1%}", "")
    report("  spread (min to max)", f"{min(learned):.1%} to {max(learned):.1%}", "")
    report("  gain over the best hand-written template", f"{100 * statistics.mean(gains):.1f} points", "at least 10")
    report("  spread of the gain", f"{100 * min(gains):.1f} to {100 * max(gains):.1f} points", "")
    return {"metrics": metrics, "learned": learned, "gains": gains}


def export(out: Path) -> dict[str, object]:
    """Measure a cold export, with the converted model in the cache but no trace, and then parity on all test rows."""
    import onnx_ir as ir

    from ptexport.exporters.targets.tensorrt import not_for_tensorrt
    from ptexport.runtime.cache_dir import cache_home
    from ptexport.runtime.rows.columns import Columns
    from ptexport.toolkit.data.splits import read_test_rows

    test = list(read_test_rows("cities", Columns(), print, fields=["text"], by_label=True, seed=0))
    rows = out / "test.jsonl"
    rows.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in test))
    with tempfile.TemporaryDirectory(dir=out) as cold:
        (Path(cold) / "ptexport").mkdir()
        (Path(cold) / "ptexport" / "models").symlink_to((cache_home() / "models").resolve())
        arguments = ("export", str(out / "run0"), "--out", str(out / "bundle"), "--force")
        cold_s, cold_peak = export_and_peak(*arguments, XDG_CACHE_HOME=cold)
    warm_s, warm_peak = export_and_peak(*arguments, "--rows", str(rows))
    weights = (out / "bundle" / "model.onnx.data").stat().st_size
    bake_s = float(python(BAKE, str(out / "run1")))
    objections = not_for_tensorrt(ir.load(out / "bundle" / "model.onnx"))
    parity = json.loads((out / "bundle" / "manifest.json").read_text())["tasks"][0]["parity"]
    results = [parity[name] for name in ("alone", "padded_right", "padded_left")]
    report("trace and export, cold, with parity on 256 rows", f"{cold_s:.0f} s", "at most 120")
    report("export, backbone already traced, with parity on all test rows", f"{warm_s:.0f} s", "")
    report("  peak memory / weights file, cold", f"{cold_peak / weights:.2f}", "at most 2.5")
    report("  peak memory / weights file, traced", f"{warm_peak / weights:.2f}", "at most 2.5")
    report("bake another task, without PyTorch", f"{bake_s:.2f} s", "at most 2")
    report(
        f"parity on {len(test)} test cities: largest |Δlogit|", f"{max(r['max_abs_diff'] for r in results):.1e}", "1e-3"
    )
    report("  labels that flip", str(sum(len(r["flips"]) for r in results)), "0")
    report("types of node that TensorRT's parser does not support", str(len(objections)), "0")
    return {
        "cold_export_s": cold_s,
        "cold_peak_bytes": cold_peak,
        "warm_peak_bytes": warm_peak,
        "warm_export_s": warm_s,
        "bake_s": bake_s,
        "parity": parity,
        "tensorrt": objections,
    }


def serve_cold(bundle: Path) -> dict[str, object]:
    """Measure import, open and first prediction in a fresh process."""
    runs = [tuple(map(float, python(OPEN, str(bundle)).split())) for _ in range(5)]
    seconds, peak_bytes = (statistics.median(column) for column in zip(*runs, strict=True))
    ratio = peak_bytes / (bundle / "model.onnx.data").stat().st_size
    report("import, Engine.open and first prediction", f"{seconds:.2f} s", "at most 4")
    report("  peak memory / weights file", f"{ratio:.2f}", "at most 1.3")
    return {"open_s": seconds, "peak_bytes": peak_bytes, "peak_ratio": ratio}


def ptexport(*arguments: str, **environment: str) -> float:
    """Run a ptexport command and return its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run(["ptexport", *arguments], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.perf_counter() - started


def export_and_peak(*arguments: str, **environment: str) -> tuple[float, int]:
    """Run an export and return its wall time in seconds and its peak memory in bytes."""
    started = time.perf_counter()
    said = python(EXPORT, *arguments, **environment)
    return time.perf_counter() - started, int(said.splitlines()[-1])


def python(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a fresh interpreter and return its standard output."""
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout


def report(what: str, figure: str, limit: str) -> None:
    """Print a figure with its limit."""
    print(f"{what:<70} {figure:>22} {limit:>14}", flush=True)


if __name__ == "__main__":
    main()
