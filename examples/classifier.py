"""Fine-tune a text classifier with Transformers alone and save it, as most people who come to ptexport have done.

usage: python examples/classifier.py FOLDER
"""

import csv
import random
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from ptexport.toolkit.models.checkpoint import find_checkpoint

TICKETS = Path(__file__).with_name("tickets.csv")
EPOCHS, BATCH = 4, 10


def main() -> None:
    """Train on the tickets and save model and tokenizer."""
    logging.set_verbosity_error()  # of the new head, which the checkpoint lacks
    logging.disable_progress_bar()
    torch.manual_seed(0)
    base = find_checkpoint("minilm").path
    with TICKETS.open(encoding="utf-8") as file:
        rows = [(row["subject"], row["queue"]) for row in csv.DictReader(file, delimiter=";")]
    labels = sorted({label for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_hidden_layers=2,  # of six, so that it takes seconds
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    order = random.Random(0)
    for _ in range(EPOCHS):
        order.shuffle(rows)
        for start in range(0, len(rows), BATCH):
            texts, names = zip(*rows[start : start + BATCH], strict=True)
            logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
            functional.cross_entropy(logits, torch.tensor([labels.index(name) for name in names])).backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = sys.argv[1]
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
