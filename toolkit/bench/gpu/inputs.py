"""A model -> a PEFT prompt with random virtual tokens, the run imported from it, and bundles for CUDA and TensorRT.

Their values do not change the latency, and logits are compared with those of the same prompt. What exists is kept.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptexport.toolkit.bench.gpu.child import ptexport
from ptexport.toolkit.bench.gpu.results import Finding
from ptexport.toolkit.bench.gpu.steps import CASES, Job
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.store.folders import new_folder

_LABELS = ("Africa", "Asia", "Europe")
_TEXTS = ("Oslo", "Lima", "Nairobi", "Dar es Salaam", "a few words of no meaning at all", "one two three four five")
_FEWEST = 4  # virtual tokens of a model that is not listed


def measure(job: Job) -> Iterator[Finding]:
    """Make what is missing; a bundle that an export refuses is a finding.

    Raises:
        ModelError: the model is not installed.
        subprocess.CalledProcessError: the adapter cannot be imported.
    """
    place = Path(job.case)
    place.mkdir(parents=True, exist_ok=True)
    causal = find_checkpoint(job.model).lm_head == "causal"
    if not (place / "adapter").exists():
        with new_folder(place / "adapter") as folder:
            _save_adapter(folder, job.model, causal=causal)
    rows = place / "rows.jsonl"
    lines = [{"text": text, "label": _LABELS[i % len(_LABELS)]} for i, text in enumerate(_TEXTS)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if not (place / "run").exists():
        labels = ",".join(f"{label}={label}" if causal else label for label in _LABELS)
        words = ["--template", "{text}"] if causal else []
        given = ["import", "peft", place / "adapter", "--out", place / "run", "--model", job.model]
        ptexport(*given, "--labels", labels, "--rows", rows, *words).check_returncode()
    yield Finding(what="run", ok=True, said=str(place / "run"))
    for variant in job.variants:
        *target, precision, opset = variant.split("-")
        given = ["--target", target[0] if target else "cuda", "--precision", precision, "--opset", opset]
        drop = [] if precision == "fp32" else ["--max-accuracy-drop", "100"]  # the prompt is random
        made = place / variant
        if not made.exists():
            done = ptexport("export", place / "run", "--out", made, *given, "--rows", rows, *drop)
            if done.returncode:
                yield Finding(what=variant, ok=False, said=done.stderr.strip().splitlines()[-1])
                continue
        yield Finding(what=variant, ok=True, values={"MB": sum(p.stat().st_size for p in made.iterdir()) / 1e6})


def _save_adapter(path: Path, model: str, *, causal: bool) -> None:
    """Save an untrained PEFT adapter: for label words on a causal model, else for a linear head."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    folder = find_checkpoint(model).path
    if causal:
        base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        loader = AutoModelForSequenceClassification
        base = loader.from_pretrained(folder, dtype=torch.float32, num_labels=len(_LABELS))
    task = "CAUSAL_LM" if causal else "SEQ_CLS"
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=CASES.get(model, _FEWEST))
    get_peft_model(base, config).save_pretrained(str(path))
