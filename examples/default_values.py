"""Measure the cost of overridable initializers for a task's tensors, compared with constants that can be folded.

usage: python examples/default_values.py [ROUNDS]

The same graph runs with constants ("constants"), with overridable initializers ("defaults"), and with overridable
initializers that each run overrides, as the engine does ("given"). MiniLM has 10 virtual tokens, SmolLM2 has 20 folded
ones; fp32, opset 18, one thread, random values. Prints medians of CPU time in ms. The order of the runs is random, and
CPU time is used instead of wall time, to reduce the influence of other processes.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.exporters.passes.bind import BindInputsPass
from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.edit import edit
from ptexport.exporters.passes.read_position import ReadPositionPass
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS
from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.models.backbone import load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.store.folders import clone

SIZES = ((1, 28), (8, 28))


def main() -> None:
    """Measure both models."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 41
    print(f"{'':<10} {'rows':>4} {'constants':>10} {'defaults':>10} {'given':>10} {'ratios':>12}")
    measure(
        "minilm",
        "linear",
        "first",
        {"prompt_embeddings": (10, 384), "label_weights": (6, 384), "label_bias": (6,)},
        rounds,
    )
    shapes = {"prompt_embeddings": (20, 576), "label_weights": (6, 576), "label_bias": (6,)}
    measure("smollm2", "words", "last", shapes | {"prefix_kv": (30, 2, 1, 3, 20, 64)}, rounds)


def measure(name: str, head: str, pooling: Pooling, shapes: Mapping[str, tuple[int, ...]], rounds: int) -> None:
    """Measure one model and print a line per size."""
    traced = trace(load_backbone(find_checkpoint(name), head), pooling, has_prefix_kv="prefix_kv" in shapes, opset=18)
    random = np.random.default_rng(0)
    arrays = {key: random.normal(scale=0.02, size=shape).astype(np.float32) for key, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as parent:
        graphs = []
        for overridable in (False, True):
            folder = Path(parent) / str(overridable)
            folder.mkdir()
            graphs.append(bake(traced.path, arrays, folder, overridable=overridable))
        graphs.append(Graph(graphs[1].session, arrays))
        for batch, tokens in SIZES:
            ids = {key: np.ones((batch, tokens), dtype=np.int64) for key in graphs[0].inputs}
            ids["input_ids"] = random.integers(0, 20_000, size=(batch, tokens))
            if "token_type_ids" in ids:
                ids["token_type_ids"][:] = 0
            calls = [partial(graph.run, ids) for graph in graphs]
            constant, default, given = (call() for call in calls)
            np.testing.assert_allclose(constant, default, atol=1e-4)
            np.testing.assert_array_equal(default, given)
            seconds: list[list[float]] = [[] for _ in calls]
            for _ in range(rounds):
                for i in random.permutation(len(calls)):
                    started = time.thread_time()
                    calls[i]()
                    seconds[i].append(time.thread_time() - started)
            medians = [1000 * statistics.median(times) for times in seconds]
            ratios = " ".join(f"{median / medians[0]:.3f}" for median in medians[1:])
            print(f"{name:<10} {batch:>4}", *(f"{median:>10.2f}" for median in medians), f"{ratios:>12}", flush=True)


def bake(traced: Path, arrays: dict[str, NDArray[np.float32]], folder: Path, *, overridable: bool) -> Graph:
    """Bake tensors into a traced graph and open it."""
    model = ir.load(traced / MODEL)
    bind = BindInputsPass(arrays, overridable=overridable)
    edit(model, ReadPositionPass(), bind, DeadCodePass(), ForgetIntermediateShapesPass())
    ir.save(model, folder / MODEL)
    clone(traced / WEIGHTS, folder / WEIGHTS)
    return Graph.open(folder / MODEL, threads=1)


if __name__ == "__main__":
    main()
