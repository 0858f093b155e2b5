"""Time how long ptexport takes to refuse what is wrong, each in a process of its own, without PyTorch.

usage: python examples/refusals.py    (needs the extra `train` and the model `minilm`)
"""

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_RUNS = 3
TRAIN = "train --model minilm --data rows.csv --out new"
REFUSALS = {
    "an unknown option": f"{TRAIN} --speed 3",
    "a missing file": f"{TRAIN} --data nothing.csv",
    "a file of another kind": f"{TRAIN} --data rows.xlsx",
    "a missing column": f"{TRAIN} --columns text=title",
    "an undeclared label": f"{TRAIN} --labels yes,no",
    "free text as labels": f"{TRAIN} --columns label=text",
    "a misspelt placeholder": f"{TRAIN} --template '[p] {{text}}'",
    "a method that needs label words": f"{TRAIN} --method pet",
    "an output that exists": f"{TRAIN} --out kept",
    "an unknown model": f"{TRAIN} --model nothing/here",
    "a damaged run": "export damaged --out new",
    "an import of a language model": "import classifier minilm --out new",
    "a classifier's missing rows": "export classifier --rows nothing.csv --out new",
    "a folder that is no adapter": "import peft kept --out new",
    "a missing bundle": "predict nothing hello",
}


def main() -> None:
    """Print the median time of each refusal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name in ("kept", "damaged", "classifier"):
            (folder / name).mkdir()
        (folder / "damaged" / "metrics.json").write_text("{}")
        (folder / "classifier" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
        rows = [f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(40)]
        (folder / "rows.csv").write_text("text,label\n" + "".join(rows))
        for what, command in REFUSALS.items():
            print(f"{refuse(folder, command):6.2f} s  {what}")


def refuse(folder: Path, command: str) -> float:
    """Return the median time of a command in seconds; its exit code must not be 0."""
    seconds = []
    for _ in range(N_RUNS):
        began = time.perf_counter()
        program = [str(Path(sys.executable).with_name("ptexport")), *shlex.split(command)]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - began)
        assert done.returncode in (1, 2), f"{command}: {done.stdout}{done.stderr}"
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
