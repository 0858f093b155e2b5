"""A run -> logits of untouched Transformers on the CPU, in fp32, one text at a time, with PEFT's virtual tokens.

The model is as loaded but for the prompt embeddings at the end of its embedding table; nothing is folded.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ptexport.runtime.bundle.folder import Bundle
from ptexport.toolkit.bench.gpu.reasons import REFERENCE
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import Job
from ptexport.toolkit.bench.synthetic_texts import SyntheticTexts
from ptexport.toolkit.bench.systems.case import check_same_task, make_case
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.files import write_whole

TEXTS = "texts.json"
_N, _LONGEST = 96, 200
_OTHERS = ("Владивосток, 東京, القاهرة", "a", "été naïve — 1984?")


def texts_of(bundle: Bundle) -> list[str]:
    """Make texts of mixed lengths, the same for the same bundle."""
    synthetic = SyntheticTexts.of(bundle)
    lengths = np.random.default_rng(7).integers(1, min(synthetic.longest, _LONGEST) + 1, _N).tolist()
    return [*_OTHERS, *(synthetic.make(1, n, f"parity {i}")[0] for i, n in enumerate(lengths))]


def measure(job: Job) -> Iterator[Finding]:
    """Compute the logits and write them beside their texts.

    Raises:
        BenchError: the run has another task than the bundle, or one that PEFT's virtual tokens cannot express.
        ModelError: the backbone is not installed.
    """
    import torch

    from ptexport.toolkit.bench.systems.hf import label_logits, load_extended, tensors
    from ptexport.toolkit.bench.systems.inputs import Inputs, LabelHead

    run, bundle = Run.read(Path(job.case) / "run"), Bundle.open(Path(job.bundle))
    check_same_task(run, bundle)
    case = make_case(run, find_checkpoint(run.config.model, revision=run.config.revision))
    model, inputs, head = load_extended(case), Inputs(case), LabelHead(case)
    texts, logits = texts_of(bundle), []
    with torch.inference_mode():
        for text in texts:
            given = tensors(inputs, [text], "cpu")
            logits += label_logits(head, model(**given), given["input_ids"])
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / TEXTS).write_text(json.dumps(texts), encoding="utf-8")
    array = io.BytesIO()
    np.save(array, np.array(logits, dtype=np.float32))
    write_whole(out / REFERENCE, array.getvalue(), force=True)
    values = {"texts": float(len(texts)), "range of logits": float(np.ptp(logits))}
    yield Finding(what="reference", ok=bool(np.isfinite(logits).all()), values=values)
