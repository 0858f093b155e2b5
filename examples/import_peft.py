"""Import adapters that PEFT trained, and measure how the bundles' answers differ from PEFT's.

usage: python examples/import_peft.py train FOLDER     P_TUNING for SEQ_CLS on minilm, saved as an adapter
       python examples/import_peft.py compare FOLDER   that and two on smollm2, imported, exported, compared; 5 minutes

PEFT answers each row alone and, for comparison, in padded batches as its users do.
"""

import csv
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, PromptEncoderConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ptexport.runtime import Engine
from ptexport.toolkit import cities
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.progress import silence_libraries

REQUESTS = Path(__file__).with_name("requests.csv")
LM_TEMPLATE = "{text} is in"
STEPS = {"minilm": 20, "smollm2": 4}
BATCH = 8


class Adapter:
    """An adapter in training: a model, its rows and what its answers are.

    Args:
        model: `minilm` or `smollm2`.
        task: SEQ_CLS or CAUSAL_LM.
    """

    def __init__(self, model: str, task: str) -> None:
        self.model, self.task = model, task
        if model == "minilm":
            with REQUESTS.open(encoding="utf-8") as file:
                self.rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
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
        config = PromptEncoderConfig(task_type=task, num_virtual_tokens=8, encoder_hidden_size=128)
        self.adapted: PeftModel = get_peft_model(base, config)

    def spec(self) -> str:
        """Write the labels as `--labels` takes them."""
        return ",".join(f"{label}={self.words[label]}" if self.task == "CAUSAL_LM" else label for label in self.labels)

    def logits(self, texts: list[str], side: str = "right") -> torch.Tensor:
        """Let PEFT answer a batch, padded on one side; float [b, c]."""
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
        """Train for some steps, one row at a time since PEFT's padded batches differ, and save."""
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
    """Let PEFT answer, float32 [rows, c]."""
    return torch.cat([adapter.logits(batch, side) for batch in batches]).numpy()


def compare(adapter: Adapter, folder: Path) -> None:
    """Train, import and export an adapter, and print the largest differences of a logit from PEFT's, row by row."""
    adapter.train(folder / "adapter")
    options = ["--template", LM_TEMPLATE] if adapter.task == "CAUSAL_LM" else []
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in adapter.rows), encoding="utf-8")
    options += ["--rows", str(rows)]
    command = ["ptexport", "import", "peft", str(folder / "adapter"), "--model", adapter.model, "--labels"]
    run, bundle = str(folder / "run"), str(folder / "bundle")
    subprocess.run([*command, adapter.spec(), "--out", run, *options], check=True)
    subprocess.run(["ptexport", "export", run, "--out", bundle], check=True)
    texts = [text for text, _ in adapter.rows]
    alone = answers(adapter, ([text] for text in texts))
    got = Engine.open(bundle).logits(texts)
    right = np.mean([adapter.labels[i] == label for i, (_, label) in zip(got.argmax(1), adapter.rows, strict=True)])
    print(
        f"{adapter.model} {adapter.task}: {len(texts)} rows, {right:.0%} right, logits from {alone.min():.1f} to ",
        end="",
    )
    print(f"{alone.max():.1f}; largest difference from PEFT's answer to each row alone:")
    print(f"    bundle, rows of mixed lengths together   {np.abs(got - alone).max():.1e}")
    for side in ("right", "left"):
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        padded = answers(adapter, batches, side)
        flips = int((padded.argmax(1) != alone.argmax(1)).sum())
        difference = np.abs(padded - alone).max()
        print(f"    PEFT, batches of {BATCH} padded {side:5}          {difference:.1e}, {flips} other labels")


def main() -> None:
    """Train, or train and compare."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    silence_libraries()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    torch.manual_seed(0)
    if what == "train":
        Adapter("minilm", "SEQ_CLS").train(folder)
        return
    for model, task in (("minilm", "SEQ_CLS"), ("smollm2", "CAUSAL_LM"), ("smollm2", "SEQ_CLS")):
        compare(Adapter(model, task), folder / f"{model}-{task.lower()}")


if __name__ == "__main__":
    main()
