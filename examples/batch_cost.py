"""Measure the cost of a batch that does not depend on its size, in tokens: PADDING_TOKENS of the batcher.

usage: python examples/batch_cost.py BUNDLE [ROUNDS]

Runs batches of n rows of L tokens in turns, takes the fastest run of each shape, and fits seconds = a + b * n * L by
least squares of relative errors. A row joins a batch as long as it adds less than a / b tokens of padding: then a batch
of its own would cost more. Takes a minute for MiniLM on 2 cores.
"""

import os
import random
import sys
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

from ptexport.runtime.bundle.folder import MODEL, Bundle
from ptexport.runtime.engine.batching import score
from ptexport.runtime.engine.text_encoder import TokenIds
from ptexport.runtime.ort.graph import Graph

SHAPES = [(n, length) for n in (1, 2, 4, 8) for length in (8, 16, 24, 32, 48, 64)]


def main() -> None:
    """Time the shapes, fit, and print the times and the fixed cost."""
    bundle, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30
    Bundle.open(bundle)
    graph = Graph.open(bundle / MODEL)
    row = {length: TokenIds([1] * length, [0] * length) for _, length in SHAPES}
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for number in range(rounds):
        for n, length in random.Random(number).sample(SHAPES, len(SHAPES)):
            started = time.perf_counter()
            score(graph, [row[length]] * n)
            seconds[n, length].append(time.perf_counter() - started)
    fastest = {shape: min(times[1:]) for shape, times in seconds.items()}
    for (n, length), best in fastest.items():
        print(f"{n} x {length}: {best * 1e3:.2f} ms")
    times = np.array([*fastest.values()])
    sizes = np.array([n * length for n, length in fastest])
    (fixed, each), *_ = np.linalg.lstsq(np.column_stack([1 / times, sizes / times]), np.ones(len(times)), rcond=None)
    print(f"a batch: {fixed * 1e3:.2f} ms, as much as {fixed / each:.0f} tokens; a token: {each * 1e3:.4f} ms")


if __name__ == "__main__":
    main()
