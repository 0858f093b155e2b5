"""Candidate graphs of one task -> how long each takes on this machine, and which is to be taken."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ptexport.exporters.parity.compare import mixed_batches
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER
from ptexport.runtime.bundle.measured import Candidate, Timing
from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.io_binding import Ids
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Template

SIZES = ((1, 28), (8, 28), (1, 100))
"""Batches that are timed: rows and tokens a row."""

ROUNDS = 11
PAUSE_S = 0.2
"""Before each run, until the threads of the graph before it have stopped spinning; else they slow it down."""
MARGIN = 0.03
"""How much faster than the target's default another graph must be: less is noise."""


def time_candidates(
    run: Run, folders: dict[int, Path], texts: Sequence[Text], stage: Callable[[str], None]
) -> list[Candidate]:
    """Time graphs in turn, so that what else this machine does slows all alike.

    Args:
        run: the task.
        folders: of each opset, the target's default first: holds the graph and its tokenizer.
        texts: those whose labels are compared.
        stage: told what begins.

    Returns:
        One per graph, in order: medians of milliseconds, and whether its labels are the default's.
    """
    graphs = {opset: Graph.open(folder / MODEL) for opset, folder in folders.items()}
    first, *_ = folders.values()
    encoder = TextEncoder.from_json(
        (first / TOKENIZER).read_text(encoding="utf-8"), fields=Template.parse(run.config.template).fields
    )
    encodings = encoder.encode(texts)
    batches = [encoder.pad([encodings[i] for i in batch]) for batch in mixed_batches(len(encodings))]
    stage("comparing the labels of " + _named(graphs))
    labels = {opset: np.concatenate([graph.run(ids).argmax(1) for ids in batches]) for opset, graph in graphs.items()}
    timings: dict[int, list[Timing]] = {opset: [] for opset in graphs}
    longest = run.config.max_length - run.config.n_prefix - run.config.n_folded
    for batch, tokens in dict.fromkeys((batch, min(tokens, longest)) for batch, tokens in SIZES):
        stage(f"timing {_named(graphs)} on {batch} x {tokens} tokens")
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
    """Choose an opset: the first, unless another gives its labels and is faster by `MARGIN`, all sizes alike."""
    default, *others = candidates

    def time_of(candidate: Candidate) -> float:
        ratios = [a.median_ms / b.median_ms for a, b in zip(candidate.timings, default.timings, strict=True)]
        return math.prod(ratios) ** (1 / len(ratios))

    faster = [other for other in others if other.same_labels and time_of(other) <= 1 - MARGIN]
    return min(faster, key=time_of, default=default).opset


def _named(graphs: dict[int, Graph]) -> str:
    return " and ".join(f"opset {opset}" for opset in graphs)


def _random_ids(run: Run, batch: int, tokens: int) -> Ids:
    """Make ids of no meaning: what they are changes no time."""
    ids = np.random.default_rng(0).integers(0, run.config.facts.vocab, size=(batch, tokens))
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
