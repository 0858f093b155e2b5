"""A bundle's logits on the provider beside those of untouched Transformers, and alone beside among others."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.errors import PtexportError
from ptexport.toolkit.bench.gpu.child import Scorer, difference, provider_of
from ptexport.toolkit.bench.gpu.reasons import REFERENCE
from ptexport.toolkit.bench.gpu.reference import TEXTS
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job

TOLERANCE = 1e-3
"""Largest difference of a logit in fp32 at temperature 1, as exports are held to."""

SHARES = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.1, "int8": 0.1, "int4": 0.25}
"""Largest difference as a share of the range of the logits, in lower precision, and in fp32 with TF32."""

_ALONE = 16


def measure(job: Job) -> Iterator[Finding]:
    """Compare without TF32 and, in fp32 on CUDA, with it.

    Raises:
        ProviderError: the provider does not run the graph.
    """
    texts = json.loads((Path(job.out) / TEXTS).read_text("utf-8"))
    expected: NDArray[np.float32] = np.load(Path(job.out) / REFERENCE)
    manifest = Bundle.open(Path(job.bundle)).manifest
    precision, parity = manifest.graph.precision, manifest.tasks[0].parity
    exact = parity.tolerance if parity is not None else TOLERANCE
    loose = SHARES[precision] * float(np.ptp(expected))
    scorer = Scorer(job, provider_of(job))
    yield from _compare("TF32 off", scorer, texts, expected, exact if precision == "fp32" else loose)
    del scorer
    if precision != "fp32" or job.provider == "cpu":
        return
    try:
        scorer = Scorer(job, provider_of(job, tf32=True))
    except PtexportError as e:
        yield Finding(what="TF32 on", ok=False, said=str(e))
        return
    yield from _compare("TF32 on", scorer, texts, expected, loose)


def _compare(
    what: str, scorer: Scorer, texts: list[str], expected: NDArray[np.float32], tolerance: float
) -> Iterator[Finding]:
    got, again = scorer.logits(texts), scorer.logits(texts)
    alone = np.concatenate([scorer.logits([text]) for text in texts[:_ALONE]])
    worst = difference(got, expected)
    values = {
        "largest |Δlogit|": worst,
        "share of range": worst / float(np.ptp(expected)),
        "labels that differ": float((got.argmax(1) != expected.argmax(1)).sum()),
        "texts": float(len(texts)),
    }
    yield Finding(
        what=f"{what}, beside Transformers", ok=worst <= tolerance, said=_said(worst, tolerance), values=values
    )
    for name, off in (
        ("alone or among others", difference(alone, got[:_ALONE])),
        ("twice", difference(again, got)),
    ):
        yield Finding(
            what=f"{what}, {name}", ok=off <= tolerance, said=_said(off, tolerance), values={"largest |Δlogit|": off}
        )


def _said(worst: float, tolerance: float) -> str:
    return f"{worst:.2g} off, at most {tolerance:.2g}"
