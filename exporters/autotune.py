"""Candidate graphs of one task -> the latency of each on this machine, and which to use."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import mixed_batches
from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.bundle.measured import Candidate, Timing
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.io_binding import Ids
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import Run

SIZES = ((1, 28), (8, 28), (1, 100))
"""Batches that are timed: rows and tokens per row."""

ROUNDS = 11
PAUSE_S = 0.2
"""Pause before each run, until the threads of the graph before it have stopped spinning and slow it down no more."""
MARGIN = 0.03
"""Speedup over the target's default that another graph needs; less is noise."""


def time_candidates(
    joint: JointTasks, folders: dict[int, Path], texts: Sequence[Text], progress: Progress
) -> list[Candidate]:
    """Time graphs in turn, so that other load on this machine slows all of them alike.

    Args:
        joint: the only task.
        folders: holds the graph and its tokenizer, by opset, the target's default first.
        texts: texts on which the graphs must predict the same labels.
        progress: gets each stage.

    Returns:
        One candidate per graph, in order: median latencies, and whether its labels are the default's.
    """
    run = joint.first
    graphs = {opset: Graph.open(folder / MODEL) for opset, folder in folders.items()}
    first, *_ = folders.values()
    (encoder,) = joint.encoders(first).of_task
    encodings = encoder.encode(texts)
    batches = [encoder.pad([encodings[i] for i in batch]) for batch in mixed_batches(len(encodings))]
    progress.stage("comparing the labels of " + _named(graphs))
    labels = {opset: np.concatenate([graph.run(ids).argmax(1) for ids in batches]) for opset, graph in graphs.items()}
    timings: dict[int, list[Timing]] = {opset: [] for opset in graphs}
    longest = run.config.max_length - run.config.n_prefix - run.config.n_folded
    for batch, tokens in dict.fromkeys((batch, min(tokens, longest)) for batch, tokens in SIZES):
        progress.stage(f"timing {_named(graphs)} on {batch} x {tokens} tokens")
        ids = _random_ids(run, batch, tokens)
        milliseconds: dict[int, list[float]] = {opset: [] for opset in graphs}
        for number, (opset, graph) in itertools.product(range(ROUNDS + 1), graphs.items()):
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            graph.run(ids)
            if number:  # the first of a size is slower
                milliseconds[opset].append(1000 * (time.perf_counter() - started))
        for opset, times in milliseconds.items():
            timings[opset].append(Timing(batch=batch, tokens=tokens, median_ms=statistics.median(times)))
    default, *_ = labels.values()
    return [
        Candidate(opset=opset, same_labels=bool((labels[opset] == default).all()), timings=timings[opset])
        for opset in graphs
    ]


def winner(candidates: Sequence[Candidate]) -> int:
    """Choose an opset: the first, unless another predicts the same labels and is faster by `MARGIN` on average."""
    default, *others = candidates

    def time_of(candidate: Candidate) -> float:
        ratios = [a.median_ms / b.median_ms for a, b in zip(candidate.timings, default.timings, strict=True)]
        return math.prod(ratios) ** (1 / len(ratios))

    faster = [other for other in others if other.same_labels and time_of(other) <= 1 - MARGIN]
    return min(faster, key=time_of, default=default).opset


def _named(graphs: dict[int, Graph]) -> str:
    return " and ".join(f"opset {opset}" for opset in graphs)


def _random_ids(run: Run, batch: int, tokens: int) -> Ids:
    """Make random ids; latency does not depend on their values."""
    ids = np.random.default_rng(0).integers(0, run.config.facts.vocab, size=(batch, tokens))
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
