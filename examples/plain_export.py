"""Measure a folded graph against a plain export of the same model: about ten minutes on 2 cores, most of it exporting.

usage: python examples/plain_export.py [ROUNDS] [THREADS]

Both are SmolLM2, fp32, opset 18, asked the same: a leading prompt of 20 tokens and a text. The plain graph is
torch.onnx.export of the untouched AutoModelForCausalLM with its defaults; it takes prompt and text as ordinary tokens
and gives logits of the whole vocabulary at every position. The folded one is what `ptexport export` writes. Their
answers are compared first. They run in turn, and a ratio is of two runs in a row: medians of rounds.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.export import Dim
from transformers import AutoModelForCausalLM

from ptexport.exporters.bake import clone
from ptexport.exporters.passes import BindInputsPass, DeadCodePass, ForgetIntermediateShapesPass, edit
from ptexport.exporters.read_pass import ReadPositionPass
from ptexport.exporters.trace import trace
from ptexport.runtime.bundle import MODEL, WEIGHTS
from ptexport.runtime.cpus import available_cpus
from ptexport.runtime.graph import Graph
from ptexport.toolkit.backbone import load_backbone
from ptexport.toolkit.checkpoint import find_checkpoint

N_LEADING = 20
SIZES = ((1, 28, "at least 1.4"), (8, 28, "at least 1.6"), (1, 100, ""))
WORDS = [315, 1024]  # any two: which they are changes no time

Run = Callable[[NDArray[np.int64]], NDArray[np.float32]]


def main() -> None:
    """Measure every size."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else available_cpus()
    random = np.random.default_rng(0)
    leading = random.integers(100, 40_000, size=N_LEADING)
    with tempfile.TemporaryDirectory() as name:
        runs = [make(Path(name), leading, threads) for make in (plain, folded)]
        print(f"{'batch':>5} {'tokens':>6} {'plain':>10} {'folded':>10} {'ratio':>6}   ({threads} threads)")
        for batch, tokens, limit in SIZES:
            ids = random.integers(100, 40_000, size=(batch, tokens))
            one, other = (run(ids) for run in runs)
            np.testing.assert_allclose(one, other, atol=1e-3)
            milliseconds = [[timed(run, ids) for run in runs] for _ in range(rounds)]
            medians = [statistics.median(column) for column in zip(*milliseconds, strict=True)]
            ratio = statistics.median(a / b for a, b in milliseconds)
            print(f"{batch:>5} {tokens:>6} {medians[0]:>7.1f} ms {medians[1]:>7.1f} ms {ratio:>6.2f}   {limit}")


def timed(run: Run, ids: NDArray[np.int64]) -> float:
    """Milliseconds of one run."""
    started = time.perf_counter()
    run(ids)
    return 1000 * (time.perf_counter() - started)


def plain(folder: Path, leading: NDArray[np.int64], threads: int) -> Run:
    """Export the model as it is; returns what gives the two words' logits for a text."""
    model = AutoModelForCausalLM.from_pretrained(find_checkpoint("smollm2").path, dtype=torch.float32).eval()
    ids = torch.ones(2, 7, dtype=torch.int64)
    batch, sequence = Dim("batch"), Dim("sequence")
    inputs = {"input_ids": ids, "attention_mask": ids.clone()}  # one tensor twice would be traced as one input
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            kwargs={**inputs, "use_cache": False},
            dynamic_shapes={**{key: {0: batch, 1: sequence} for key in inputs}, "use_cache": None},
            input_names=list(inputs),
            output_names=["logits"],
            opset_version=18,
            dynamo=True,
            external_data=True,
            verbose=False,
            f=folder / "plain.onnx",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = threads, False  # as Graph has them
    session = onnxruntime.InferenceSession(folder / "plain.onnx", options, providers=["CPUExecutionProvider"])

    def run(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        whole = np.concatenate([np.tile(leading, (len(ids), 1)), ids], axis=1)
        (logits,) = session.run(["logits"], {"input_ids": whole, "attention_mask": np.ones_like(whole)})
        picked: NDArray[np.float32] = logits[:, -1, WORDS]
        return picked

    return run


@torch.no_grad()
def folded(folder: Path, leading: NDArray[np.int64], threads: int) -> Run:
    """Bake the leading tokens' keys and values and the two words' rows; returns the same."""
    backbone = load_backbone(find_checkpoint("smollm2"), "words")
    traced = trace(backbone, "last", leading=True, opset=18)
    rows = torch.zeros(1, backbone.facts.embedding_width)
    label_rows, label_bias = backbone.label_rows([[word] for word in WORDS])
    states = backbone.classifier("last").leading_states(leading.tolist(), rows)
    tensors = {
        "prompt_rows": rows,
        "label_rows": label_rows,
        "label_bias": label_bias,
        "leading_states": states,
    }
    model = ir.load(traced.path / MODEL)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    edit(model, ReadPositionPass(), BindInputsPass(arrays), DeadCodePass(), ForgetIntermediateShapesPass())
    ir.save(model, folder / MODEL)
    clone(traced.path / WEIGHTS, folder / WEIGHTS)
    graph = Graph.open(folder / MODEL, threads=threads)
    return lambda ids: graph.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


if __name__ == "__main__":
    main()
