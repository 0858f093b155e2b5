"""Import adapters that PEFT trained, and measure the difference between the bundles' logits and PEFT's.

usage: python examples/import_peft.py train FOLDER     train P_TUNING for SEQ_CLS on minilm and save the adapter
       python examples/import_peft.py compare FOLDER   import, export and compare the four types of adapter on minilm
                                                       and smollm2: 20 minutes on 2 cores, 2 GB of temporary files

PEFT predicts each row alone. For comparison, it also predicts in float64, and in padded batches as its users do.
"""

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
)
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ptexport.runtime import Engine
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.toolkit.cli.progress_bars import silence_libraries
from ptexport.toolkit.data import cities
from ptexport.toolkit.models.checkpoint import find_checkpoint

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TICKETS = Path(__file__).with_name("tickets.csv")
LM_TEMPLATE = "{text} is in"
STEPS = {"minilm": 20, "smollm2": 4}
BATCH = 8
KINDS: dict[str, Callable[[str], Any]] = {
    "P_TUNING": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=8, encoder_hidden_size=128),
    "PROMPT_TUNING": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=8),
    "PREFIX_TUNING": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=8),
    "LORA": lambda task: LoraConfig(task_type=task, r=8, target_modules="all-linear"),
}
RANDOM = "PREFIX_TUNING, random start"
KINDS[RANDOM] = KINDS["PREFIX_TUNING"]
MODELS = (("minilm", "SEQ_CLS"), ("smollm2", "SEQ_CLS"), ("smollm2", "CAUSAL_LM"))
CASES = [(*model, kind) for model in MODELS for kind in KINDS if kind != RANDOM or model == MODELS[-1]]
START = "Which continent is a city in? Africa, Asia, Europe, North America, South America or Australia."


class Adapter:
    """A PEFT adapter in training, with its model, rows and labels.

    Args:
        kind: one of KINDS.
        model: `minilm` or `smollm2`.
        task: SEQ_CLS or CAUSAL_LM.
    """

    def __init__(self, kind: str, model: str, task: str) -> None:
        torch.manual_seed(0)
        self.model, self.task = model, task
        if model == "minilm":
            columns = Columns(text="{subject}", label="queue")
            self.rows = [(row.text, str(row.label)) for row in read_rows(TICKETS, columns)]
        else:
            self.rows = [(row.text, str(row.label)) for row in cities.load_cities()[::20]]
        self.labels = sorted({label for _, label in self.rows})
        self.words = dict(part.split("=") for part in cities.labels(linear=False).split(","))
        path = find_checkpoint(model).path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        if task == "SEQ_CLS":
            loader, options = AutoModelForSequenceClassification, {"num_labels": len(self.labels)}
        else:
            loader, options = AutoModelForCausalLM, {}
        base = loader.from_pretrained(path, dtype=torch.float32, **options)
        base.config.pad_token_id = self.tokenizer.pad_token_id
        start = None
        if kind == "PREFIX_TUNING" and model == "smollm2":
            with torch.no_grad():
                start = base(**self.tokenizer(START, return_tensors="pt"), use_cache=True).past_key_values
        self.adapted: PeftModel = get_peft_model(base, KINDS[kind](task))
        if start is not None:
            initialize_kv_prefix_from_past_key_values(self.adapted, past_key_values=start)

    def spec(self) -> str:
        """Format the labels as `--labels` takes them."""
        return ",".join(f"{label}={self.words[label]}" if self.task == "CAUSAL_LM" else label for label in self.labels)

    def logits(self, texts: list[str], side: str = "right") -> torch.Tensor:
        """Return PEFT's logits for one batch, padded on one side; float [b, c]."""
        causal_lm = self.task == "CAUSAL_LM"
        self.tokenizer.padding_side = side
        strings = [LM_TEMPLATE.format(text=text) if causal_lm else text for text in texts]
        batch = self.tokenizer(strings, padding=True, return_tensors="pt")
        logits: torch.Tensor = self.adapted(**batch).logits
        if not causal_lm:
            return logits
        length = batch["attention_mask"].sum(1) if side == "right" else batch["input_ids"].shape[1]
        last = logits.shape[1] - batch["input_ids"].shape[1] + length - 1
        words = [self.tokenizer.encode(f" {self.words[label]}", add_special_tokens=False)[0] for label in self.labels]
        return logits[torch.arange(len(texts)), last][:, words]

    def train(self, folder: Path) -> None:
        """Train for some steps and save; one row at a time, because padding changes PEFT's logits."""
        optimizer = torch.optim.AdamW([p for p in self.adapted.parameters() if p.requires_grad], lr=3e-3)
        order = random.Random(0)
        for _ in range(STEPS[self.model]):
            for text, label in order.sample(self.rows, BATCH):
                target = torch.tensor([self.labels.index(label)])
                (functional.cross_entropy(self.logits([text]), target) / BATCH).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.adapted.eval().save_pretrained(folder)


@torch.no_grad()
def answers(adapter: Adapter, batches: Iterator[list[str]], side: str = "right") -> NDArray[np.float32]:
    """Return PEFT's logits, float32 [rows, c]."""
    return torch.cat([adapter.logits(batch, side) for batch in batches]).numpy()


def compare(adapter: Adapter, folder: Path) -> tuple[int, list[str]]:
    """Train, import and export an adapter, and compare its logits with those of PEFT for each row alone.

    Returns:
        The number of rows, and the cells of the table: the largest difference of a logit for the bundle; for PEFT in
        float64; for PEFT's batches padded right, with the number of flipped labels; and the same padded left.
    """
    adapter.train(folder / "adapter")
    texts = [text for text, _ in adapter.rows]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    options = ["--model", adapter.model, "--labels", adapter.spec(), "--rows", str(rows)]
    options += ["--template", LM_TEMPLATE] if adapter.task == "CAUSAL_LM" else []
    run, bundle = str(folder / "run"), str(folder / "bundle")
    ptexport("import", "peft", str(folder / "adapter"), "--out", run, *options)
    alone = answers(adapter, ([text] for text in texts))
    try:
        ptexport("export", run, "--out", bundle)
        found = [f"{np.abs(Engine.open(bundle).logits(texts) - alone).max():.1e}"]
    except subprocess.CalledProcessError:
        found = ["refused"]
    found.append("")  # float64, which is measured last
    for side in ("right", "left"):
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        padded = answers(adapter, batches, side)
        found += [f"{np.abs(padded - alone).max():.1e}", str((padded.argmax(1) != alone.argmax(1)).sum())]
    adapter.adapted.double()
    found[1] = f"{np.abs(answers(adapter, ([text] for text in texts)) - alone).max():.1e}"
    return len(texts), found


def ptexport(*arguments: str) -> None:
    """Run a ptexport command and show its progress."""
    subprocess.run(["ptexport", *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Train an adapter, or train and compare all of them."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    silence_libraries()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if what == "train":
        Adapter("P_TUNING", "minilm", "SEQ_CLS").train(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("adapter", "rows", "bundle", "PEFT in fp64")
    padded = (f"PEFT, {BATCH} padded {side} | flips" for side in ("right", "left"))
    print(f"| {' | '.join([*columns, *padded])} |\n{'|---' * 8}|")
    for model, task, kind in CASES:
        with TemporaryDirectory(dir=folder) as place:
            n_rows, found = compare(Adapter(kind, model, task), Path(place))
        print("| " + " | ".join([f"{kind}, {task}, `{model}`", str(n_rows), *found]) + " |", flush=True)


if __name__ == "__main__":
    main()
