"""Train and export every method on real models, compare with Transformers, and print the table of docs/methods.md.

    python examples/methods.py build/methods [minilm|smollm2]

Finished runs are kept, so that an interrupted script can continue. On 2 cores, minilm takes 10 minutes and smollm2 an
hour.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import MANUAL

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

LINEAR = ("--head", "linear")
CITY = "The city of {text} is in"
CASES: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    # A sentence encoder without a language-model head: methods with a linear head only.
    "minilm": [
        ("p-tuning", "[P*4] {text} [P*4]", LINEAR),
        ("p-tuning", "[P*4] {text} [P*4]", (*LINEAR, "--tune-backbone")),
        ("p-tuning-v2", "[P*8] {text}", LINEAR),
        ("prefix", "[P*8] {text}", LINEAR),
        ("prompt-tuning", "[P*8] {text}", LINEAR),
        ("lora", "{text}", LINEAR),
        ("fine-tune", "{text}", ()),
    ],
    "smollm2": [
        ("manual", CITY, ()),
        ("manual", CITY, ("--prior-correction",)),
        ("manual", CITY, ("--shots", "6")),
        ("search", f"{CITY} [P*3]", ("--epochs", "4", "--patience", "4")),
        ("p-tuning", f"{CITY} [P*3]", ()),
        ("prompt-tuning", f"[P*8] {CITY}", ("--init", "words")),
        ("p-tuning-v2", f"[P*8] {CITY}", ()),
        ("prefix", f"[P*8] {CITY}", ()),
        ("lora", CITY, ()),
        ("pet", CITY, ()),
        ("p-tuning", f"{CITY} [P*3]", ("--tune-backbone",)),
        ("fine-tune", CITY, ()),
    ],
}


def ptexport(*arguments: str) -> str:
    """Run a ptexport command, show its progress, and return its standard output."""
    return subprocess.run(["ptexport", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(folder: Path, model: str, method: str, template: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Train and export one case, or read its earlier results."""
    name = "-".join([model, method, *(option.strip("-") for option in options)])
    run, bundle = folder / f"{name}-run", folder / name
    given = ["--model", model, "--data", "cities", "--method", method, "--template", template, *options]
    if method == "search":  # the templates to compare with
        given += [word for template in MANUAL for word in ("--manual", template)]
    metrics = json.loads(ptexport("train", *given, "--out", str(run), "--resume", "--json"))
    if not bundle.exists():
        ptexport("export", str(run), "--out", str(bundle))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return {"metrics": metrics, "parity": manifest["tasks"][0]["parity"]}


def row(model: str, method: str, template: str, options: tuple[str, ...], found: dict[str, Any]) -> str:
    """Format one line of the table."""
    metrics, parity = found["metrics"], found["parity"]
    kinds = ("alone", "padded_right", "padded_left")
    shown = " ".join(option for option in options if option not in LINEAR)
    accuracy = f"{metrics['test_accuracy']:.1%}"
    if metrics["manual_accuracy"]:
        accuracy += f" (median by hand {statistics.median(metrics['manual_accuracy'].values()):.1%})"
    cells = (
        model,
        " ".join(filter(None, [method, shown])),
        f"`{template}`",
        f"{metrics['trainable_parameters']:,}",
        accuracy,
        f"{metrics['train_seconds']:.0f}",
        f"{max(parity[kind]['max_abs_diff'] for kind in kinds):.0e}",
        str(sum(len(parity[kind]["flips"]) for kind in kinds)),
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, each line as soon as it is measured."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    print("| model | method | template | trained | test accuracy | seconds | largest \\|Δlogit\\| | flips |")
    print("|---|---|---|---|---|---|---|---|")
    for model in sys.argv[2:] or CASES:
        for method, template, options in CASES[model]:
            found = measure(folder, model, method, template, options)
            print(row(model, method, template, options, found), flush=True)


if __name__ == "__main__":
    main()
