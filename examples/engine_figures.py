"""Measure how an engine starts, how much memory it takes and how near to the machine's arithmetic it is.

usage: python examples/engine_figures.py BUNDLE ROWS

Prints a line a figure. ROWS is a file of texts of different lengths. Starts are of whole processes; ratios of what is
measured in turn in this one. Three minutes for SmolLM2 on 2 cores.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx_ir as ir

from ptexport.exporters.summary import summarize_graph
from ptexport.runtime import Engine
from ptexport.runtime.batches import batches
from ptexport.runtime.buckets import MAX_BATCH_ROWS
from ptexport.runtime.bundle import MODEL, WEIGHTS
from ptexport.runtime.rows import read_rows

ROUNDS = 7
SIZE = 2048  # of the square matrices
BATCH, TOKENS = 8, 28

IMPORT = "import time; t = time.perf_counter(); import ptexport.runtime; print(time.perf_counter() - t)"
OPEN = """
import re, sys
from ptexport.runtime import Engine
engine = Engine.open(sys.argv[1], provider="cpu")
engine.predict(["Nairobi"])
status = open("/proc/self/status").read()
print(*(int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) for name in ("VmRSS", "VmHWM")))
"""


def main() -> None:
    """Measure one after the other."""
    bundle, rows = Path(sys.argv[1]), Path(sys.argv[2])
    imports = [float(python(IMPORT)) for _ in range(ROUNDS)]
    print(f"import ptexport.runtime: {statistics.median(imports):.2f} s")
    started = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        said = python(OPEN, str(bundle))
        started.append(time.perf_counter() - before)
    resident, peak = (int(kilobytes) * 1024 for kilobytes in said.split())
    weights = (bundle / WEIGHTS).stat().st_size
    print(f"process that opens and predicts: {statistics.median(started):.2f} s, {spread(started)} s")
    print(
        f"resident: {resident / weights:.2f} of the weights' {weights / 1e6:.0f} MB, at the peak {peak / weights:.2f}"
    )
    engine = Engine.open(bundle, provider="cpu")
    overhead(engine)
    in_batches(engine, rows)
    arithmetic(engine, bundle)


def python(code: str, *arguments: str) -> str:
    """Run a program and return what it prints."""
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def spread(values: Sequence[float]) -> str:
    """Name the smallest and the largest."""
    return f"{min(values):.2f} to {max(values):.2f}"


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Time two things in turn, in seconds; the first round of each is not counted."""
    pairs = []
    for _ in range(rounds + 1):
        times = []
        for run in (first, second):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        pairs.append((times[0], times[1]))
    return pairs[1:]


def overhead(engine: Engine) -> None:
    """Time a text against its ids in ONNX Runtime alone."""
    encoder, graph, _ = engine._opened.get()
    text = "a few words of no meaning at all"
    ids = encoder.pad(encoder.encode([text]))
    given = {name: ids[name] for name in graph.inputs}
    pairs = in_turn(lambda: engine.predict([text]), lambda: graph.session.run(["logits"], given), 200)
    milliseconds = 1000 * statistics.median(whole - alone for whole, alone in pairs)
    print(f"Python around a text: {milliseconds:.2f} ms")


def in_batches(engine: Engine, rows: Path) -> None:
    """Time texts sorted by length against batches in order of arrival."""
    encoder, graph, _ = engine._opened.get()
    encodings = encoder.encode([row.texts for row in read_rows(rows)])
    lengths = [len(encoding) for encoding in encodings]
    sorted_ = list(batches(lengths, graph.batch_tokens))
    arrival = [list(range(len(lengths)))[i : i + MAX_BATCH_ROWS] for i in range(0, len(lengths), MAX_BATCH_ROWS)]

    def run(order: Sequence[Sequence[int]]) -> None:
        for batch in order:
            graph.run(encoder.pad([encodings[i] for i in batch]))

    pairs = in_turn(lambda: run(arrival), lambda: run(sorted_), 3)
    ratios = [late / early for late, early in pairs]
    padded = [share_padded(lengths, order) for order in (arrival, sorted_)]
    print(
        f"{len(lengths)} texts: {statistics.median(ratios):.2f} times the throughput of batches of {MAX_BATCH_ROWS} in "
        f"order of arrival ({spread(ratios)}); {padded[1]:.0%} padding instead of {padded[0]:.0%}"
    )


def share_padded(lengths: Sequence[int], order: Sequence[Sequence[int]]) -> float:
    """Compute how much of what is run is padding."""
    run = sum(len(batch) * max(lengths[i] for i in batch) for batch in order)
    return 1 - sum(lengths) / run


def arithmetic(engine: Engine, bundle: Path) -> None:
    """Compare the rate of arithmetic with that of a large product of float32 matrices in this process."""
    graph = engine._opened.get().graph
    flops = summarize_graph(ir.load(bundle / MODEL), TOKENS).flops
    if flops is None:
        print("arithmetic: of unknown sizes")
        return
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    ids = {name: np.ones((BATCH, TOKENS), dtype=np.int64) for name in graph.inputs}
    ids["input_ids"] = random.integers(1000, 20000, size=(BATCH, TOKENS))
    if "token_type_ids" in ids:
        ids["token_type_ids"][:] = 0
    pairs = in_turn(lambda: left @ right, lambda: graph.run(ids), 4 * ROUNDS)
    rates = [(2 * SIZE**3 / product, BATCH * flops / whole) for product, whole in pairs]
    shares = [of_graph / of_product for of_product, of_graph in rates]
    of_product, of_graph = (statistics.median(rate) / 1e9 for rate in zip(*rates, strict=True))
    print(
        f"{BATCH} x {TOKENS}: {of_graph:.0f} GFLOP/s, {statistics.median(shares):.0%} of a product of {SIZE} x {SIZE} "
        f"matrices ({of_product:.0f}), {spread(shares)}"
    )


if __name__ == "__main__":
    main()
