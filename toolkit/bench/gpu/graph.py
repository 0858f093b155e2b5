"""CUDA graphs off and on: whether the session is taken, the same logits, and the latency of a call."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.errors import PtexportError
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.bench.gpu.child import difference, milliseconds, provider_of, random_ids
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job

SHAPES = ((1, 28), (8, 28), (32, 100))
TOLERANCE = 1e-3  # a replayed run has the kernels of the recorded one


def measure(job: Job) -> Iterator[Finding]:
    """Run each shape with several inputs in both ways: a replay with other inputs must have other logits.

    Raises:
        ProviderError: the provider does not run the graph at all.
    """
    plain = Graph.open(Path(job.bundle) / MODEL, provider=provider_of(job))
    expected = {shape: _logits(plain, shape) for shape in SHAPES}
    for shape in SHAPES:
        ids = random_ids(plain, shape, 0)
        yield Finding(what=f"off, {_name(shape)}", ok=True, values={"ms": milliseconds(partial(plain.run, ids))})
    try:
        recorded = Graph.open(Path(job.bundle) / MODEL, provider=provider_of(job, cuda_graph=True))
    except PtexportError as e:
        yield Finding(what="on", ok=False, said=str(e))
        return
    for shape in SHAPES:
        off = max(difference(*pair) for pair in zip(_logits(recorded, shape), expected[shape], strict=True))
        changes = float(np.abs(expected[shape][0] - expected[shape][1]).max())
        ids = random_ids(recorded, shape, 0)
        values = {"ms": milliseconds(partial(recorded.run, ids)), "largest |Δlogit|": off}
        ok = off <= TOLERANCE < changes
        said = f"{off:.2g} off, at most {TOLERANCE:g}; other inputs change a logit by {changes:.2g}"
        yield Finding(what=f"on, {_name(shape)}", ok=ok, said=said, values=values)


def _logits(graph: Graph, shape: tuple[int, int]) -> list[NDArray[np.float32]]:
    return [graph.run(random_ids(graph, shape, seed)) for seed in (0, 1, 0)]


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
