"""Compare the time of a training step with PEFT's P_TUNING on the same rows: about three minutes on 2 cores.

usage: python examples/step_time.py [ROUNDS]

SmolLM2, fp32, 16 rows of 28 tokens, 12 virtual tokens from an MLP, AdamW. Each system runs in its own process, so that
its peak memory can be measured. The systems alternate after every step, so that other load on the machine affects all
of them equally. A step includes batch, forward pass, backward pass and optimizer. Prints medians; ratios are to PEFT
CAUSAL_LM in the same round. On a shared machine, OMP_NUM_THREADS=1 gives more stable figures.
"""

import csv
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

N_ROWS, N_TOKENS, N_VIRTUAL, WARM_UP = 16, 28, 12, 2
LABELS = ("great", "terrible")


def main() -> None:
    """Start the systems, run their steps alternately, and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), rounds + WARM_UP + 2)  # one before the first turn, one in an endless last step
        workers = {name: start(name, Path(folder)) for name in SYSTEMS}
        try:
            seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
            for _ in range(rounds + WARM_UP):
                for name, worker in workers.items():
                    seconds[name].append(float(ask(worker, "step")))
            peaks = {name: int(ask(worker, "peak")) for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()
    medians = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
    first = next(iter(SYSTEMS))
    print(f"{rounds} steps each in turn, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':<32} {'step':>9} {'ratio':>6} {'min to max':>15} {'peak':>9} {'ratio':>6}")
    for name, median in medians.items():
        pairs = zip(seconds[name][WARM_UP:], seconds[first][WARM_UP:], strict=True)
        ratio = statistics.median(time / of_first for time, of_first in pairs)
        spread = f"{min(seconds[name][WARM_UP:]):.2f} to {max(seconds[name][WARM_UP:]):.2f} s"
        print(
            f"{name:<32} {median:>7.2f} s {ratio:>6.2f} {spread:>15} {peaks[name] >> 20:>5} MiB "
            f"{peaks[name] / peaks[first]:>6.2f}"
        )


def write_rows(folder: Path, steps: int) -> None:
    """Write texts of exactly N_TOKENS words, each of which is one token with and without a leading space."""
    from tokenizers import Tokenizer

    from ptexport.toolkit.models.checkpoint import find_checkpoint

    vocab = Tokenizer.from_file(str(find_checkpoint("smollm2").path / "tokenizer.json")).get_vocab()
    words = sorted(token[1:] for token in vocab if re.fullmatch("Ġ[a-z]{4,8}", token) and token[1:] in vocab)
    random_ = random.Random(0)
    for name, n_rows in (("train", steps * N_ROWS), ("dev", 2), ("test", 2)):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows((" ".join(random_.choices(words, k=N_TOKENS)), LABELS[i % 2]) for i in range(n_rows))


def start(name: str, folder: Path) -> "subprocess.Popen[str]":
    """Start a system and wait until it is ready for its first step; loading is not part of the measurement."""
    command = [sys.executable, __file__, "--worker", name, str(folder)]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    print(f"{name}: ready after {float(answer(worker)):.1f} s", flush=True)
    return worker


def ask(worker: "subprocess.Popen[str]", what: str) -> str:
    """Request a step from a system, or its peak memory, and return the reply."""
    assert worker.stdin is not None
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    return answer(worker)


def answer(worker: "subprocess.Popen[str]") -> str:
    """Read the reply of a system, and skip the output of libraries."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith("answer "):
            return line.removeprefix("answer ")
    raise SystemExit(f"a worker ended with {worker.wait()}: {worker.args}")


def wait_for_turn(began: float) -> float:
    """Report the time since `began`, reply to requests, and return the start time of the next step."""
    print(f"answer {time.perf_counter() - began}", flush=True)
    while input() == "peak":
        # Not from getrusage, which includes the memory of the parent process.
        peak_kb = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak_kb is not None
        print(f"answer {int(peak_kb[1]) * 1024}", flush=True)
    return time.perf_counter()


def train_peft(task: str, folder: Path) -> None:
    """Train as PEFT's users do: the labels are the input tokens (CAUSAL_LM) or one class per row (SEQ_CLS)."""
    import torch
    import transformers
    from peft import PromptEncoderConfig, get_peft_model

    from ptexport.toolkit.models.checkpoint import find_checkpoint

    began = time.perf_counter()
    path = find_checkpoint("smollm2").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    loader = (
        transformers.AutoModelForCausalLM if task == "CAUSAL_LM" else transformers.AutoModelForSequenceClassification
    )
    base = loader.from_pretrained(path, dtype=torch.float32)
    base.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(base, PromptEncoderConfig(task_type=task, num_virtual_tokens=N_VIRTUAL)).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    with open(folder / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for first in range(0, len(rows), N_ROWS):
        batch = rows[first : first + N_ROWS]
        began = wait_for_turn(began)
        given = tokenizer([" " + row["text"] for row in batch], return_tensors="pt", padding=True)
        assert given["input_ids"].shape == (N_ROWS, N_TOKENS)
        classes = torch.tensor([LABELS.index(row["label"]) for row in batch])
        loss = model(**given, labels=given["input_ids"] if task == "CAUSAL_LM" else classes).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    wait_for_turn(began)


def train_ptexport(template: str, folder: Path, n_batches: int = 1) -> None:
    """Train as `ptexport train` does; the progress callback waits for the next turn."""
    from ptexport.toolkit.run.config import TrainConfig, TrainSettings
    from ptexport.toolkit.training.inputs import read_inputs
    from ptexport.toolkit.training.plan import make_plan
    from ptexport.toolkit.training.train import train

    class Turns:
        """A progress display that lets training take one step per turn."""

        began = time.perf_counter()

        def step(self, done: int, total: int, loss: float) -> None:
            self.began = wait_for_turn(self.began)

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *given: None

    config = TrainConfig(
        model="smollm2", data=str(folder / "train.csv"), dev=str(folder / "dev.csv"), test=str(folder / "test.csv"),
        template=template, labels="great=great,terrible=terrible", encoder="mlp",
        settings=TrainSettings(batch_size=N_ROWS // n_batches, accumulate=n_batches, epochs=1),
    )  # fmt: skip
    inputs = read_inputs(config, Turns())
    plan = make_plan(inputs, Turns(), None)
    n_leading = len(plan.scorer.folded_ids)  # run once per step, not in each row
    assert {len(encoding) for encoding in plan.train.encodings} == {N_TOKENS + N_VIRTUAL - n_leading}
    train(inputs, Turns(), backbone=plan.prompt_model.backbone)


SYSTEMS: dict[str, Callable[[Path], None]] = {
    "PEFT CAUSAL_LM": lambda folder: train_peft("CAUSAL_LM", folder),
    "PEFT SEQ_CLS": lambda folder: train_peft("SEQ_CLS", folder),
    "ptexport, prompt first": lambda folder: train_ptexport("[P*12] {text}", folder),
    "ptexport, prompt last": lambda folder: train_ptexport("{text} [P*12]", folder),
    "ptexport, prompt first, 2 x 8": lambda folder: train_ptexport("[P*12] {text}", folder, n_batches=2),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        SYSTEMS[sys.argv[2]](Path(sys.argv[3]))
    else:
        main()
