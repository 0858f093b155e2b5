"""Measure what `ptexport bench` does not: import time, Python overhead per call, and sorting texts by length.

usage: python examples/engine_figures.py BUNDLE ROWS

Prints one line per figure. ROWS is a file with texts of different lengths. Takes two minutes for SmolLM2 on 2 cores.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from ptexport.runtime import Engine
from ptexport.runtime.engine.batching import batches_for
from ptexport.runtime.ort.batch_shapes import MAX_BATCH_ROWS
from ptexport.runtime.rows.read import read_rows

ROUNDS = 7

IMPORT = "import time; t = time.perf_counter(); import ptexport.runtime; print(time.perf_counter() - t)"


def main() -> None:
    """Run all measurements."""
    bundle, rows = Path(sys.argv[1]), Path(sys.argv[2])
    imports = [float(python(IMPORT)) for _ in range(ROUNDS)]
    print(f"import ptexport.runtime: {statistics.median(imports):.2f} s")
    engine = Engine.open(bundle, provider="cpu")
    overhead(engine)
    in_batches(engine, rows)


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter and return its standard output."""
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def spread(values: Sequence[float]) -> str:
    """Format the minimum and the maximum."""
    return f"{min(values):.2f} to {max(values):.2f}"


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Time two calls alternately, in seconds; the first round is discarded."""
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
    """Compare the time of predicting one text with the time that ONNX Runtime takes for its ids."""
    loaded = engine._state.get()
    encoder, graph = loaded.encoders.of_task[0], loaded.graph
    text = "a few words of no meaning at all"
    ids = encoder.pad(encoder.encode([text]))
    given = {name: ids[name] for name in graph.inputs}
    pairs = in_turn(lambda: engine.predict([text]), lambda: graph.session.run(["logits"], given), 200)
    milliseconds = 1000 * statistics.median(whole - alone for whole, alone in pairs)
    print(f"Python overhead per text: {milliseconds:.2f} ms")


def in_batches(engine: Engine, rows: Path) -> None:
    """Compare batches of texts sorted by length with batches in order of arrival."""
    loaded = engine._state.get()
    encoder, graph = loaded.encoders.of_task[0], loaded.graph
    encodings = encoder.encode([row.texts for row in read_rows(rows)])
    lengths = [len(encoding) for encoding in encodings]
    sorted_ = list(batches_for(graph, lengths))
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
    """Return the share of padding in all tokens that are run, 0 to 1."""
    run = sum(len(batch) * max(lengths[i] for i in batch) for batch in order)
    return 1 - sum(lengths) / run


if __name__ == "__main__":
    main()
