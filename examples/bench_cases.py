"""Make the bundles that `make figures` and `make bench-quick` measure: PEFT prompts, imported and exported.

usage: python examples/bench_cases.py FOLDER [CASE …]

FOLDER/CASE gets a PEFT adapter with random virtual tokens (their values do not change the latency), the run imported
from it, and a bundle in each precision. Existing files are kept. Cases: 20 virtual tokens before the text on SmolLM2,
with label words (smollm2) or a linear head (smollm2-linear), and 10 on MiniLM with a linear head (minilm).
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

LABELS = ("Africa", "Asia", "Europe")
CASES = {"smollm2": ("smollm2", "CAUSAL_LM", 20), "smollm2-linear": ("smollm2", "SEQ_CLS", 20)}
CASES["minilm"] = ("minilm", "SEQ_CLS", 10)
PRECISIONS = ("fp32", "int8")


def main() -> None:
    """Make the given cases, or all."""
    folder = Path(sys.argv[1])
    for case in sys.argv[2:] or CASES:
        make(folder / case, *CASES[case])


def make(place: Path, model: str, task: str, n_virtual: int) -> None:
    """Make the missing parts of a case."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "adapter").exists():
        save_adapter(place / "adapter", model, task, n_virtual)
    words = task == "CAUSAL_LM"
    labels = ",".join(f"{label}={label}" if words else label for label in LABELS)
    if not (place / "run").exists():
        options = ("--template", "{text}") if words else ()
        adapter, run = str(place / "adapter"), str(place / "run")
        ptexport("import", "peft", adapter, "--out", run, "--model", model, "--labels", labels, *options)
    for precision in PRECISIONS:
        # The prompt is random, so accuracy has no meaning.
        drop = () if precision == "fp32" else ("--max-accuracy-drop", "100")
        if not (place / precision).exists():
            ptexport("export", str(place / "run"), "--out", str(place / precision), "--precision", precision, *drop)


def save_adapter(path: Path, model: str, task: str, n_virtual: int) -> None:
    """Save an untrained PEFT adapter."""
    import torch
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from ptexport.toolkit.models.checkpoint import find_checkpoint

    torch.manual_seed(0)
    folder = find_checkpoint(model).path
    if task == "CAUSAL_LM":
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        loader = AutoModelForSequenceClassification
        base = loader.from_pretrained(folder, dtype=torch.float32, num_labels=len(LABELS))
    get_peft_model(base, PromptTuningConfig(task_type=task, num_virtual_tokens=n_virtual)).save_pretrained(path)


def ptexport(*arguments: str) -> None:
    """Run a ptexport command and show its progress."""
    subprocess.run(["ptexport", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
