"""Time a bundle against the PEFT adapter that it was made of: about ten minutes on 2 cores.

usage: python examples/engine_speed.py FOLDER [ROUNDS]

Prompts of virtual tokens before the text are made with PEFT, imported and exported: 20 on SmolLM2 (CAUSAL_LM and
SEQ_CLS), 10 on MiniLM (SEQ_CLS). Each system has a process of its own with all CPUs, PEFT in inference mode; they take
turns, call by call. A call is texts in, labels out, tokenisation included, and no text is asked twice. Answers are
compared first. Ratios are medians of those of two calls in a row; the table is of times of PEFT over the bundle's.

FOLDER keeps adapters and bundles for the next time.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

LABELS = {"Africa": "Africa", "Asia": "Asia", "Europe": "Europe"}
CASES = {
    "smollm2 CAUSAL_LM": ("smollm2", 20, ((1, 28), (8, 28), (1, 100))),
    "smollm2 SEQ_CLS": ("smollm2", 20, ((1, 28), (8, 28), (1, 100))),
    "minilm SEQ_CLS": ("minilm", 10, ((1, 28), (8, 28))),
}
WARM_UP = 2
PAUSE_S = 0.3  # until the threads of the one before have stopped spinning
PRECISIONS = ("fp32", "int8")


def main() -> None:
    """Make what is missing, compare answers, then time and print a table a case."""
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9
    folder.mkdir(parents=True, exist_ok=True)
    for case, (_, n_virtual, sizes) in CASES.items():
        place = folder / case.replace(" ", "-")
        make(place, case)
        systems = ["peft", *PRECISIONS]
        workers = {name: start(name, case, place) for name in systems}
        try:
            answers = {name: ask(worker, "answers") for name, worker in workers.items()}
            for name in PRECISIONS:
                worst = max(
                    abs(a - b)
                    for row, other in zip(answers["peft"], answers[name], strict=True)
                    for a, b in zip(row, other, strict=True)
                )
                print(f"{case}, {name}: answers at most {worst:.1e} from PEFT's", flush=True)
            print(f"\n| {case}, {n_virtual} virtual tokens | PEFT | " + " | ".join(PRECISIONS) + " |")
            print("|---|---|" + "---|" * len(PRECISIONS))
            for batch, tokens in sizes:
                seconds: dict[str, list[float]] = {name: [] for name in systems}
                for number in range(rounds + WARM_UP):
                    for name, worker in workers.items():
                        time.sleep(PAUSE_S)
                        seconds[name].append(ask(worker, f"time {batch} {tokens} {number}"))
                print(row_of(f"{batch} x {tokens}", {name: times[WARM_UP:] for name, times in seconds.items()}))
            print(flush=True)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()


def row_of(size: str, seconds: dict[str, list[float]]) -> str:
    """Write medians, and how many times faster than PEFT with the smallest and largest of all rounds."""
    peft = seconds["peft"]
    cells = [f"{1000 * statistics.median(peft):.1f} ms"]
    for name in PRECISIONS:
        ratios = sorted(theirs / ours for theirs, ours in zip(peft, seconds[name], strict=True))
        spread = f"{ratios[0]:.1f} to {ratios[-1]:.1f}"
        cells.append(f"{1000 * statistics.median(seconds[name]):.1f} ms, {statistics.median(ratios):.2f} ({spread})")
    return f"| {size} | " + " | ".join(cells) + " |"


def make(place: Path, case: str) -> None:
    """Save an adapter, import it, and export it in every precision, unless that is there."""
    model = CASES[case][0]
    place.mkdir(exist_ok=True)
    if not (place / "adapter").exists():
        Peft(case, None).save(place / "adapter")
    causal_lm = case.endswith("CAUSAL_LM")
    labels = ",".join(f"{label}={word}" if causal_lm else label for label, word in LABELS.items())
    if not (place / "run").exists():
        options = ["--template", "{text}"] if causal_lm else []
        command = ["import", "peft", str(place / "adapter"), "--out", str(place / "run"), "--model", model]
        run_ptexport(*command, "--labels", labels, *options)
    for precision in PRECISIONS:
        if not (place / precision).exists():
            drop = () if precision == "fp32" else ("--max-accuracy-drop", "100")
            out = str(place / precision)
            run_ptexport("export", str(place / "run"), "--out", out, "--precision", precision, *drop)


def run_ptexport(*arguments: str) -> None:
    """Run the command, its progress shown."""
    subprocess.run(["ptexport", *arguments], check=True, stdout=sys.stderr)


def start(name: str, case: str, place: Path) -> "subprocess.Popen[str]":
    """Start a system in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, case, str(place)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]", what: str) -> Any:
    """Send a line and read one of JSON."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work(name: str, case: str, place: Path) -> None:
    """Answer lines until the other end closes."""
    system = Peft(case, place / "adapter") if name == "peft" else Bundle(place / name)
    words = plain_words(CASES[case][0])
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "answers":
            print(json.dumps(system.logits(texts(words, 3, 28, "answers"))), flush=True)
            continue
        batch, tokens, number = map(int, numbers)
        some = texts(words, batch, tokens, f"{batch} {tokens} {number}")
        started = time.perf_counter()
        system.logits(some)
        print(time.perf_counter() - started, flush=True)


def plain_words(model: str) -> list[str]:
    """Choose words that are one token each, at the start of a text too."""
    from tokenizers import Tokenizer

    from ptexport.toolkit.checkpoint import find_checkpoint

    tokenizer = Tokenizer.from_file(str(find_checkpoint(model).path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = ("".join(token.split("Ġ")) for token in sorted(tokenizer.get_vocab()))
    words = sorted({name for name in names if name.isascii() and name.isalpha() and name.islower() and len(name) > 3})
    encoded = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
    return [word for word, encoding in zip(words, encoded, strict=True) if len(encoding) == 2][:2000]


def texts(words: list[str], batch: int, tokens: int, seed: str) -> list[str]:
    """Make texts of so many tokens, other ones for each seed."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(words, k=tokens)) for _ in range(batch)]


class Bundle:
    """A bundle in ptexport's engine."""

    def __init__(self, path: Path) -> None:
        from ptexport.runtime import Engine

        self._engine = Engine.open(path, provider="cpu")

    def logits(self, some: list[str]) -> list[list[float]]:
        """Score texts."""
        rows: list[list[float]] = self._engine.logits(some).tolist()
        return rows


class Peft:
    """An adapter in PEFT; a new one where no path is given."""

    def __init__(self, case: str, adapter: Path | None) -> None:
        import torch
        from peft import PeftModel, PromptTuningConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        from ptexport.toolkit.checkpoint import find_checkpoint
        from ptexport.toolkit.progress import silence_libraries

        silence_libraries()
        torch.manual_seed(0)
        self._torch = torch
        model, n_virtual, _ = CASES[case]
        path = find_checkpoint(model).path
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._words = None
        if case.endswith("CAUSAL_LM"):
            base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            encode = self._tokenizer.encode
            self._words = [encode(f" {word}", add_special_tokens=False)[0] for word in LABELS.values()]
        else:
            loader = AutoModelForSequenceClassification
            base = loader.from_pretrained(path, dtype=torch.float32, num_labels=len(LABELS))
        base.config.pad_token_id = self._tokenizer.pad_token_id
        if adapter is not None:
            self._adapted = PeftModel.from_pretrained(base, adapter).eval()
        else:
            config = PromptTuningConfig(task_type=case.split()[1], num_virtual_tokens=n_virtual)
            self._adapted = get_peft_model(base, config).eval()

    def save(self, folder: Path) -> None:
        """Write the adapter."""
        self._adapted.save_pretrained(folder)

    def logits(self, some: list[str]) -> list[list[float]]:
        """Score texts of equal lengths: PEFT's padded batches are not exact on causal models."""
        with self._torch.inference_mode():
            logits = self._adapted(**self._tokenizer(some, return_tensors="pt")).logits
            if self._words is not None:
                logits = logits[:, -1, self._words]
            rows: list[list[float]] = logits.tolist()
        return rows


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
