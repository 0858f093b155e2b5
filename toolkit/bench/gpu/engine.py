"""A bundle for TensorRT -> its engine, golden rows, and the latency of a call."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ptexport.runtime import Engine
from ptexport.toolkit.bench.gpu.child import milliseconds
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job

_SIZES = ((1, 28), (8, 28), (32, 100))


def measure(job: Job) -> Iterator[Finding]:
    """Build the engine or take it from the cache, and predict.

    Raises:
        ProviderError: TensorRT does not take the whole graph.
        BundleError: the golden rows have other logits here.
    """
    started = time.perf_counter()
    with Engine.open(Path(job.bundle), provider="tensorrt") as engine:
        values = {"open (s)": time.perf_counter() - started, "largest |Δlogit|": engine.info.golden_max_abs_diff}
        yield Finding(what="golden rows", ok=True, said=str(engine.info.placement), values=values)
        for batch, tokens in _SIZES:
            texts = [" ".join(["city"] * tokens)] * batch
            values = {"ms": milliseconds(partial(engine.logits, texts))}
            yield Finding(what=f"{batch} x {tokens}", ok=True, values=values)
