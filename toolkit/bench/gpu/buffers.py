"""Inputs in pageable memory, in pinned memory, and in memory on the device: the same logits, and the latency."""

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.ort.graph import Graph
from ptexport.toolkit.bench.gpu.child import difference, milliseconds, provider_of, random_ids
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job

_SHAPES = ((1, 28), (32, 100))
_TOLERANCE = 1e-3


def measure(job: Job) -> Iterator[Finding]:
    """Run two shapes in each way.

    Raises:
        ProviderError: the provider does not run the graph.
    """
    graph = Graph.open(Path(job.bundle) / MODEL, provider=provider_of(job))
    for shape in _SHAPES:
        ids, name = random_ids(graph, shape, 0), f"{shape[0]} x {shape[1]}"
        (expected,) = graph.session.run(["logits"], ids)
        values = {"ms": milliseconds(partial(graph.session.run, ["logits"], ids))}
        yield Finding(what=f"{name}, copied by ONNX Runtime", ok=True, values=values)
        yield _bound(f"{name}, bound to the device", graph, ids, expected)
        if job.provider != "cpu":
            what, refusal = f"{name}, bound, from pinned memory", _no_pinned_memory()
            if refusal is None:
                yield _bound(what, graph, _pinned(ids), expected)
            else:
                yield Finding(what=what, ok=False, said=refusal)


def _bound(what: str, graph: Graph, ids: dict[str, NDArray[np.int64]], expected: NDArray[np.float32]) -> Finding:
    off = difference(graph.run(ids), expected)
    values = {"ms": milliseconds(partial(graph.run, ids)), "largest |Δlogit|": off}
    return Finding(what=what, ok=off <= _TOLERANCE, said=f"{off:.2g} off", values=values)


def _no_pinned_memory() -> str | None:
    """Say why PyTorch gives no pinned memory; None: it does."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} finds no GPU"


def _pinned(ids: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Copy arrays into page-locked memory of PyTorch's, from which a GPU copies at the bus's rate."""
    import torch

    return {name: torch.from_numpy(array).pin_memory().numpy() for name, array in ids.items()}
