"""Measure the cost of several tasks in one graph relative to one, on SmolLM2: about five minutes on 2 cores.

usage: python examples/many_tasks.py [FOLDER]

The tasks are random, because training does not change the latency. Prints each figure with its limit and writes
FOLDER/many_tasks.json. A time is the minimum of several calls. The calls alternate, with a pause before each in which
the threads of the other session stop spinning. Memory is measured in a fresh process.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

PAUSE_S = 0.2

MEMORY = """
import gc, re, sys
from pathlib import Path
from ptexport.runtime.engine.engine import Engine
def memory():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def opened(path):
    engine = Engine.open(path)
    engine.predict_all(["Nairobi"])
    return engine
engines = [opened(path) for path in sys.argv[1:]]
print(memory())
del engines
gc.collect()
print(memory())
"""


def main() -> None:
    """Run all measurements."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/many_tasks")
    out.mkdir(parents=True, exist_ok=True)
    tails = make_runs(out, "tail", "{text} [P*4]", 10)
    leading = make_runs(out, "leading", "[P*8] {text} [P*4]", 8)
    figures = {"backbone": "smollm2 (from 4-bit weights)", "cpus": len(os.sched_getaffinity(0))}
    one, of_ten = export(tails[:1], out / "one"), export(tails, out / "ten")
    one_leading, of_eight = export(leading[:1], out / "one-leading"), export(leading, out / "eight-leading")
    eight = export(tails[:8], out / "eight")

    apart = [one, *(bake_like(one, run, out / f"apart-{t}") for t, run in enumerate(tails[1:]))]
    memory = {name: peak(*paths) for name, paths in (("one", [one]), ("ten", [of_ten]), ("ten_apart", apart))}
    figures |= {f"memory_{name}_mb": round(sizes[0] / 1e6) for name, sizes in memory.items()}
    figures |= {f"memory_{name}_closed_mb": round(sizes[1] / 1e6) for name, sizes in memory.items()}
    check(figures, "memory of ten tasks over one", memory["ten"][0] / memory["one"][0], 1.5)
    check(figures, "memory of ten bundles over one", memory["ten_apart"][0] / memory["one"][0], 1.5)

    from ptexport.runtime import Engine

    text = "the film was slow " * 25
    engine, many = Engine.open(one), Engine.open(eight)
    for rows in (1, 8):
        texts = [text] * rows
        single, fan_out = smallest(partial(engine.predict, texts), partial(many.predict_all, texts))
        figures |= {f"one_ms_{rows}x100": round(single * 1e3, 1), f"all_8_ms_{rows}x100": round(fan_out * 1e3, 1)}
        check(figures, f"8 tasks of {rows} x 100 tokens over one", fan_out / single, 1.6)
    del engine, many
    engine, many = Engine.open(one_leading), Engine.open(of_eight)
    names = [run.name for run in leading]
    for words in (7, 25):
        texts = ["the film was slow " * words] * 8
        single, mixed = smallest(partial(engine.predict, texts), partial(many.predict, texts, task=names))
        check(figures, f"batch of 8 tasks over one of one task, 8 x {4 * words} tokens", mixed / single, 1.1)
    (out / "many_tasks.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def make_runs(out: Path, name: str, template: str, n_tasks: int) -> list[Path]:
    """Train one run briefly, and write copies with other random prompts and the key/values that belong to them."""
    folders = [out / f"{name}-{t}" for t in range(n_tasks)]
    if all(folder.exists() for folder in folders):
        return folders
    from ptexport.toolkit.run.backbone import load_backbone_of
    from ptexport.toolkit.run.run import Run

    rows = out / "rows.jsonl"
    words = {"positive": "bright", "negative": "dull"}
    lines = [{"text": f"film {i} was {word}", "label": label} for i in range(8) for label, word in words.items()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = ["ptexport", "train", "--model", "smollm2", "--data", str(rows), "--template", template, "--epochs", "1"]
    command += ["--labels", "positive=good,negative=bad", "--max-length", "256", "--out", str(out / name), "--force"]
    subprocess.run(command, check=True)
    run = Run.read(out / name)
    backbone = load_backbone_of(run.config, out / name)
    leading_ids = run.config.compile(run.tokenizer_json).leading_ids
    for seed, folder in enumerate(folders):
        noise = np.random.default_rng(seed).normal(0, 0.02, run.arrays.prompt_embeddings.shape)
        prompt_embeddings = run.arrays.prompt_embeddings + noise.astype(np.float32)
        prefix_kv = backbone.classifier("last").prefix_kv(leading_ids, torch.from_numpy(prompt_embeddings))
        arrays = dataclasses.replace(run.arrays, prompt_embeddings=prompt_embeddings, prefix_kv=prefix_kv.numpy())
        folder.mkdir(exist_ok=True)
        dataclasses.replace(run, arrays=arrays, check_rows=run.check_rows[:4]).write(folder)
    return folders


def export(runs: list[Path], out: Path) -> Path:
    """Export runs with `ptexport export`."""
    if not out.exists():
        subprocess.run(["ptexport", "export", *map(str, runs), "--out", str(out)], check=True)
    return out


def bake_like(bundle: Path, run: Path, out: Path) -> Path:
    """Make a bundle from a run like a given bundle, without comparing it with Transformers.

    The comparison does not change the memory of an open bundle. The golden rows get the bundle's own logits.
    """
    from ptexport.exporters.bake import bake
    from ptexport.exporters.multitask.join import JointTasks
    from ptexport.exporters.trace.cached import Trace, trace_key
    from ptexport.runtime.bundle.folder import MANIFEST, MODEL, Bundle
    from ptexport.runtime.cache_dir import cache_home
    from ptexport.runtime.engine.batching import logits_of
    from ptexport.runtime.engine.golden import golden_texts
    from ptexport.runtime.ort.graph import Graph
    from ptexport.toolkit.run.run import Run

    if not out.exists():
        made = Run.read(run)
        key = trace_key(made.config.facts, made.config.pooling, has_prefix_kv=made.arrays.has_prefix_kv, opset=18)
        out.mkdir()
        joint = JointTasks({out.name: made})
        files = bake(joint, Trace.read(cache_home() / "traces" / key), out).files
        sibling = Bundle.open(bundle).manifest.renamed(out.name)
        (encoder,) = joint.encoders(out).of_task
        logits = logits_of(Graph.open(out / MODEL), encoder.encode(golden_texts(sibling.task.golden)))
        golden = [
            msgspec.structs.replace(row, logits=dict(zip(made.config.labels, own[0].tolist(), strict=True)))
            for row, own in zip(sibling.task.golden, logits, strict=True)
        ]
        task = msgspec.structs.replace(sibling.task, golden=golden)
        manifest = msgspec.structs.replace(sibling, files=files, tasks=[task])
        (out / MANIFEST).write_bytes(manifest.to_json())
    return out


def peak(*bundles: Path) -> list[int]:
    """Return the memory of a fresh process in bytes, with bundles open and after they are closed."""
    done = subprocess.run([sys.executable, "-c", MEMORY, *bundles], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.splitlines()]


def smallest(*calls: Callable[[], object], times: int = 9) -> list[float]:
    """Time calls alternately, and return the minimum of each in seconds."""
    best = [float("inf")] * len(calls)
    for _ in range(times):
        for number, call in enumerate(calls):
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            call()
            best[number] = min(best[number], time.perf_counter() - started)
    return best


def check(figures: dict[str, object], name: str, got: float, limit: float) -> None:
    """Print a figure with its limit."""
    figures[name] = round(got, 3)
    print(f"{'ok  ' if got <= limit else 'OVER'} {name}: {got:.2f}, at most {limit}", flush=True)


if __name__ == "__main__":
    main()
