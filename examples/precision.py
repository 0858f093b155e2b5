"""Export a run in every precision, and measure each against fp32: the table of docs/precision.md.

    python examples/precision.py RUN ROWS FOLDER [PRECISION …]

ROWS is a file of labelled rows that the run was not trained on. Bundles are made in FOLDER; those that are there are
kept. `alone` is the largest difference of a logit between a row alone and the same row among 59 others. Times are of
the graph, each precision in turn with fp32; a ratio is the median of those of two runs in a row.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.batches import logits_of
from ptexport.runtime.bundle import MODEL, WEIGHTS, Bundle
from ptexport.runtime.graph import Graph
from ptexport.runtime.rows import read_rows
from ptexport.runtime.tokens import TextEncoder

PRECISIONS = ("fp16", "int8", "int8-dynamic", "int4")
SIZES = ((1, 28), (8, 28), (1, 100))
ROUNDS = 9
PAUSE_S = 0.2  # until the other graph's threads have stopped spinning: without it fp32 seems twice as slow


class Answers:
    """A bundle's graph, and what it answers to rows."""

    def __init__(self, path: Path, rows: Path) -> None:
        self.bundle = Bundle.open(path)
        self.size_bytes = sum((path / name).stat().st_size for name in (MODEL, WEIGHTS))
        self.graph = Graph.open(path / MODEL)
        encoder = TextEncoder.from_json(
            (path / "tokenizer.json").read_text("utf-8"), fields=self.bundle.manifest.fields
        )
        given = list(read_rows(rows))
        self.labels = np.array([self.bundle.labels.index(str(row.label)) for row in given])
        encodings = encoder.encode([row.texts for row in given])
        self.logits = logits_of(self.graph, encodings, (len(self.bundle.labels),))
        some = encodings[:60]
        among = self.graph.run(encoder.pad(some))
        alone = np.concatenate([self.graph.run(encoder.pad([encoding])) for encoding in some])
        self.alone = float(np.abs(among - alone).max())

    @property
    def accuracy(self) -> float:
        """Share of the rows it labels right."""
        return float((self.logits.argmax(1) == self.labels).mean())


def main() -> None:
    """Print the table, a line as soon as it is known."""
    run, rows, folder = map(Path, sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    fp32 = Answers(exported(run, folder, "fp32"), rows)
    print(f"{len(fp32.labels)} rows, {len(os.sched_getaffinity(0))} CPUs; fp32 has {fp32.size_bytes / 1e6:.0f} MB")
    print(
        "| precision | products | size | accuracy | same label | alone | "
        + " | ".join(f"{b} x {t}" for b, t in SIZES)
        + " |"
    )
    print("|---|---|---|---|---|---|" + "---|" * len(SIZES))
    print(f"| fp32 | | 1.00 | {fp32.accuracy:.1%} | | {fp32.alone:.0e} |" + " 1.00 |" * len(SIZES))
    for precision in sys.argv[4:] or PRECISIONS:
        answers = Answers(exported(run, folder, precision), rows)
        lowered = answers.bundle.manifest.graph.lowered
        counts = ", ".join(f"{n} {recipe}" for recipe, n in sorted(lowered.products.items())) if lowered else ""
        same = float((answers.logits.argmax(1) == fp32.logits.argmax(1)).mean())
        size = answers.size_bytes / fp32.size_bytes
        faster = " | ".join(f"{ratio:.2f}" for ratio in ratios(fp32.graph, answers.graph))
        figures = f"{size:.2f} | {answers.accuracy:.1%} | {same:.1%} | {answers.alone:.0e}"
        print(f"| {precision} | {counts} | {figures} | {faster} |", flush=True)


def exported(run: Path, folder: Path, precision: str) -> Path:
    """Export as users do, or find what was there; if that loses too much on check rows, export all the same."""
    out = folder / precision
    command = ["ptexport", "export", str(run), "--out", str(out), "--precision", precision]
    if not out.exists() and subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        subprocess.run([*command, "--max-accuracy-drop", "100"], check=True, stdout=sys.stderr)
    return out


def ratios(fp32: Graph, other: Graph) -> list[float]:
    """How many times faster a graph is, by size: medians of rounds."""
    random = np.random.default_rng(0)
    found = []
    for batch, tokens in SIZES:
        ids = {name: np.ones((batch, tokens), dtype=np.int64) for name in fp32.inputs}
        ids["input_ids"] = random.integers(1000, 20000, size=(batch, tokens))
        if "token_type_ids" in ids:
            ids["token_type_ids"][:] = 0
        pairs = [(seconds(fp32, ids), seconds(other, ids)) for _ in range(ROUNDS + 1)][1:]
        found.append(statistics.median(one / two for one, two in pairs))
    return found


def seconds(graph: Graph, ids: dict[str, NDArray[np.int64]]) -> float:
    """Time one run."""
    time.sleep(PAUSE_S)
    started = time.perf_counter()
    graph.run(ids)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
