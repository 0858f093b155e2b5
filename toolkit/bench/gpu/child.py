"""The process of a step, and what several steps share.

    python -m ptexport.toolkit.bench.gpu.child KIND JOB

The module KIND has a function `measure(job)` that yields findings; each becomes a line of JSON on standard output as
soon as it is found, so that those before a crash are kept.
"""

import importlib
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import MODEL, Bundle
from ptexport.runtime.engine.batching import logits_of
from ptexport.runtime.engine.task_encoders import TaskEncoders, longest_row
from ptexport.runtime.errors import BenchError, PtexportError
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import Provider, choose_provider
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job

_WARM_UP, _FEWEST, _MOST, _SECONDS = 3, 5, 50, 0.3


def main() -> None:
    """Run the module that the arguments name."""
    kind, job = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Job)
    warnings.simplefilter("ignore")
    findings = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries goes to the log
    module: Any = importlib.import_module(f"ptexport.toolkit.bench.gpu.{kind}")
    measure: Callable[[Job], Iterator[Finding]] = module.measure
    for finding in measure(job):
        finite = {name: value for name, value in finding.values.items() if math.isfinite(value)}  # JSON has no others
        findings.write(msgspec.json.encode(msgspec.structs.replace(finding, values=finite)) + b"\n")
        findings.flush()


def provider_of(job: Job, *, cuda_graph: bool = False, tf32: bool = False) -> Provider:
    """Choose the provider of a job.

    Raises:
        ProviderError: it does not run here.
        BenchError: TF32 was asked for without CUDA.
    """
    provider = choose_provider(job.provider, cuda_graph=cuda_graph)
    if not tf32:
        return provider
    options = dict(provider.options)
    if "use_tf32" not in options:
        raise BenchError(f"TF32: provider {job.provider} has none; leave it out")
    return replace(provider, options=tuple((options | {"use_tf32": "1"}).items()))


class Scorer:
    """A bundle's graph with its tokenizer.

    Attributes:
        graph: the graph, in a session of its own; batches are padded as the engine pads them.
        open_s: seconds to open it.
    """

    def __init__(self, job: Job, provider: Provider) -> None:
        bundle = Bundle.open(Path(job.bundle))
        self._encoders = TaskEncoders.open(bundle)
        started = time.perf_counter()
        buckets = Buckets.up_to(longest_row(bundle))
        self.graph = Graph.open(bundle.path / MODEL, provider=provider, buckets=buckets)
        self.open_s = time.perf_counter() - started

    def logits(self, texts: list[str]) -> NDArray[np.float32]:
        """Compute the first task's logits of texts, float32 [texts, labels]."""
        return np.stack(logits_of(self.graph, self._encoders.of_task[0].encode(texts)))[:, 0]


def ptexport(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a command of ptexport; what it says on standard error is in the log of the step too."""
    command = [sys.executable, "-m", "ptexport.toolkit.cli.main", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    return done


def random_ids(graph: Graph, shape: tuple[int, int], seed: int) -> dict[str, NDArray[np.int64]]:
    """Make inputs of one shape: ids that every vocabulary has, without padding."""
    ids = np.random.default_rng(seed).integers(5, 40, shape)
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: known.get(name, np.zeros_like(ids)) for name in graph.inputs}


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median of some calls in milliseconds, after a warm-up."""
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < _SECONDS and len(times) < _MOST):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest absolute difference; infinite if one is not finite."""
    worst = float(np.abs(got - expected).max())
    return worst if np.isfinite(worst) else float("inf")


if __name__ == "__main__":
    try:
        main()
    except PtexportError as e:
        sys.exit(str(e))
