"""Measure what ReadPositionPass saves: the same graph with and without it, run alternately.

usage: python examples/read_position.py [ROUNDS]

MiniLM (6 layers, first token) and SmolLM2 (30 layers, last token), fp32, opset 18. The latency does not depend on the
values, so prompt embeddings and label weights are random. Prints medians; each round runs each graph once.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ptexport.exporters.passes.bind import BindInputsPass
from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.edit import Edit, edit
from ptexport.exporters.passes.read_position import ReadPositionPass
from ptexport.exporters.trace.trace import trace
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS
from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.models.backbone import load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.store.folders import clone

SIZES = ((1, 28), (8, 28), (1, 100))


def main() -> None:
    """Measure both models."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    print(f"{'':<10} {'batch':>5} {'tokens':>6} {'without':>10} {'with':>10} {'ratio':>6}")
    measure("minilm", "linear", "first", rounds)
    measure("smollm2", "words", "last", rounds)


def measure(name: str, head: str, pooling: Pooling, rounds: int) -> None:
    """Measure one model and print a line per size."""
    backbone = load_backbone(find_checkpoint(name), head)
    traced = trace(backbone, pooling, has_prefix_kv=False, opset=18)
    width, vocab = backbone.model.config.hidden_size, backbone.facts.vocab
    random = np.random.default_rng(0)
    arrays = {
        "prompt_embeddings": random.normal(size=(4, backbone.facts.embedding_width)).astype(np.float32),
        "label_weights": random.normal(size=(2, width)).astype(np.float32),
        "label_bias": np.zeros(2, dtype=np.float32),
    }
    with tempfile.TemporaryDirectory() as parent:
        graphs = []
        for number, edits in enumerate(([], [ReadPositionPass()])):
            folder = Path(parent) / str(number)
            folder.mkdir()
            model = ir.load(traced.path / MODEL)
            rest: list[Edit] = [BindInputsPass(arrays), DeadCodePass(), ForgetIntermediateShapesPass()]
            edit(model, *edits, *rest)
            ir.save(model, folder / MODEL)
            clone(traced.path / WEIGHTS, folder / WEIGHTS)
            graphs.append(Graph.open(folder / MODEL, threads=1))
        for batch, tokens in SIZES:
            ids = {key: np.ones((batch, tokens), dtype=np.int64) for key in graphs[0].inputs}
            ids["input_ids"] = random.integers(0, vocab, size=(batch, tokens))
            if "token_type_ids" in ids:
                ids["token_type_ids"][:] = 0
            one, other = (graph.run(ids) for graph in graphs)
            np.testing.assert_allclose(one, other, atol=1e-2, rtol=1e-3)
            seconds: list[list[float]] = [[], []]
            for _ in range(rounds):
                for graph, times in zip(graphs, seconds, strict=True):
                    started = time.perf_counter()
                    graph.run(ids)
                    times.append(time.perf_counter() - started)
            without, with_ = (1000 * statistics.median(times) for times in seconds)
            print(f"{name:<10} {batch:>5} {tokens:>6} {without:>7.1f} ms {with_:>7.1f} ms {without / with_:>6.3f}")


if __name__ == "__main__":
    main()
