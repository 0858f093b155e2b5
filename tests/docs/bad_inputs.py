"""What goes wrong for people, what ptexport prints then, and the page made of it.

Run by `make docs` to write the page, and by a test that compares.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

TRAIN = "train --model model --data rows.csv --labels positive=great,negative=bad --template '[P] {text}' --out new"

CASES = (
    ("a file with no rows", {"empty.csv": b"text,label\n"}, f"{TRAIN} --data empty.csv"),
    ("a missing file", {}, f"{TRAIN} --data nothing.csv"),
    ("an undeclared label", {"odd.csv": b"text,label\na,great\n"}, f"{TRAIN} --data odd.csv"),
    ("a missing column", {"odd.csv": b"sentence,label\na,positive\n"}, f"{TRAIN} --data odd.csv"),
    (
        "a malformed JSON row",
        {"odd.jsonl": b'{"text": "a", "label": "positive"}\n{"text":\n'},
        f"{TRAIN} --data odd.jsonl",
    ),
    ("an unquoted comma", {"odd.csv": b"text,label\nyes, great,positive\n"}, f"{TRAIN} --data odd.csv"),
    (
        "a file in another encoding",
        {"odd.csv": "text,label\né,positive\n".encode("latin-1")},
        f"{TRAIN} --data odd.csv",
    ),
    ("a file of another kind", {"odd.xlsx": b""}, f"{TRAIN} --data odd.xlsx"),
    ("a column that is not there", {}, f"{TRAIN} --columns text=title,label=class"),
    ("a format that names no column", {}, f"{TRAIN} --text-format title"),
    ("a label value without a name", {"odd.csv": b"text,label\na,2\n"}, f"{TRAIN} --data odd.csv --label-names no,yes"),
    (
        "a column of free text as labels",
        {"odd.csv": b"text,label\n" + b"".join(b"a,note %d\n" % number for number in range(12))},
        "train --model model --data odd.csv --out new",
    ),
    ("labels in a missing file", {}, f"{TRAIN} --labels labels.txt"),
    ("too few rows to split", {"odd.csv": b"text,label\na,positive\nb,negative\n"}, f"{TRAIN} --data odd.csv"),
    ("a template without {text}", {}, f"{TRAIN} --template '[P] it was'"),
    ("a misspelt placeholder", {}, f"{TRAIN} --template '[p] {{text}}'"),
    ("a letter next to a placeholder", {}, f"{TRAIN} --template '[P] {{text}}s'"),
    ("a template without virtual tokens", {}, f"{TRAIN} --template '{{text}} was'"),
    ("a pair template for single texts", {}, f"{TRAIN} --template '[P] {{text}} and {{text_b}}'"),
    (
        "choices in a CSV file",
        {"odd.csv": b"text,choices,label\nwhy,a|b,a\n"},
        f"{TRAIN} --data odd.csv --template '[P] {{text}} {{choice}}'",
    ),
    (
        "a row with one choice",
        {"odd.jsonl": b'{"text": "why", "choices": ["a"], "label": 0}\n'},
        f"{TRAIN} --data odd.jsonl --template '[P] {{text}} {{choice}}'",
    ),
    (
        "a label that is not among the choices",
        {"odd.jsonl": b'{"text": "why", "choices": ["a", "b"], "label": 2}\n'},
        f"{TRAIN} --data odd.jsonl --template '[P] {{text}} {{choice}}'",
    ),
    ("a {choice} template for rows without choices", {}, f"{TRAIN} --template '[P] {{text}} {{choice}}'"),
    ("a label word of two tokens", {}, f"{TRAIN} --labels positive=greats,negative=bad"),
    ("one word for two labels", {}, f"{TRAIN} --labels positive=bad,negative=bad"),
    ("a label without a label word", {}, f"{TRAIN} --labels positive=great,negative="),
    ("label names that are not words of the model", {}, f"{TRAIN} --labels positive,negative"),
    ("an unknown model", {}, f"{TRAIN} --model somebody/nothing"),
    ("a method with label words on a sentence encoder", {}, f"{TRAIN} --model minilm --template '[P] {{text}} [MASK]'"),
    ("more tokens than the model supports", {}, f"{TRAIN} --max-length 4096"),
    ("training texts that are too long", {}, f"{TRAIN} --max-length 4 --strict"),
    ("a learning rate that is far too high", {}, f"{TRAIN} --lr 1e38"),
    ("an output that exists already", {}, f"{TRAIN} --out run"),
    ("a folder that ptexport did not write", {"photos/cat.jpg": b""}, f"{TRAIN} --out photos --force"),
    ("an interrupted training", {"new.partial/resume.safetensors": b""}, TRAIN),
    ("an unknown option", {}, f"{TRAIN} --speed 3"),
    ("a missing run", {}, "export nothing --out new"),
    ("a run with a file missing", {"run/weights.safetensors": None}, "export run --out new"),
    ("an opset that the target does not support", {}, "export run --target tensorrt --opset 23 --out new"),
    ("autotuning for another machine", {}, "export run --target web --tune --out new"),
    ("a folder without anything to export", {"photos/cat.jpg": b""}, "export photos --out new"),
    ("a language model instead of a classifier", {}, "export model --out new"),
    ("label names for a run", {}, "export run --labels good,bad --out new"),
    (
        "a classifier that computes a number",
        {
            "odd/config.json": b'{"model_type": "bert", "architectures": ["BertForSequenceClassification"], '
            b'"id2label": {"0": "x"}}'
        },
        "export odd --out new",
    ),
    (
        "a classifier saved as a pickle",
        {
            "odd/config.json": b'{"model_type": "bert", "architectures": ["BertForSequenceClassification"]}',
            "odd/pytorch_model.bin": b"",
        },
        "import classifier odd --out new",
    ),
    ("a folder that is not a PEFT adapter", {}, "import peft run --out new"),
    (
        "an unsupported type of PEFT adapter",
        {"adapter/adapter_config.json": b'{"peft_type": "IA3"}'},
        "import peft adapter --out new",
    ),
    (
        "a PEFT adapter saved as a pickle",
        {
            "adapter/adapter_config.json": b'{"peft_type": "LORA", "task_type": "SEQ_CLS"}',
            "adapter/adapter_model.bin": b"",
        },
        "import peft adapter --out new",
    ),
    ("a missing pack", {}, "install nothing.ptpack --backbone bundle --out new"),
    ("a file that is not a pack", {}, "install run/weights.safetensors --backbone bundle --out new"),
    ("a missing bundle", {}, "predict nothing hello"),
    ("a bundle on the hub, and no network", {}, "predict hub:somebody/nothing hello"),
    ("a bundle on the hub without its owner", {}, "predict hub:reviews hello"),
    ("a push to a repository without its owner", {}, "push bundle reviews"),
    ("a bundle with a changed byte", {"bundle/config.json": b"flipped"}, "predict bundle hello"),
    ("a bundle with a file missing", {"bundle/model.onnx.data": None}, "predict bundle hello"),
    ("an unsigned bundle", {"key.pub": b""}, "predict bundle hello --require-signature key.pub"),
    ("a column to keep that is not there", {}, "predict bundle --input rows.csv --keep date"),
    ("a row with one text too many", {"odd.csv": b"text,text_b\na,b\n"}, "predict bundle --input odd.csv"),
    ("a text that is too long for the bundle", {}, f"predict bundle '{'slow ' * 60}' --strict"),
    ("an output file that exists already", {"a.jsonl": b""}, "predict bundle --input rows.csv --output a.jsonl"),
    ("evaluation rows without labels", {"odd.csv": b"text\na\n"}, "evaluate bundle --data odd.csv"),
)
"""What went wrong; files written first (None: removed; b"flipped": a byte of it flipped); the command."""


def page(workplace: Path) -> str:
    """Run every case in a copy of a folder with `model`, `run`, `bundle` and `rows.csv`, and return the page."""
    parts = [
        "# When something goes wrong",
        "",
        "The last line that ptexport prints for each of these, made by running them. `train …` stands for",
        f"`ptexport {TRAIN}`, where `model` is a small causal model; an option given after it replaces the one in it.",
        "",
    ]
    for what, files, command in CASES:
        code, message = outcome(workplace, files, command)
        shown = command.replace(TRAIN, "train …")
        shown = shown if len(shown) < 100 else f"{shown[:60]} …"
        parts += [
            f"**{what[0].upper()}{what[1:]}** (exit code {code})",
            "",
            "```",
            f"$ ptexport {shown}",
            message.splitlines()[-1],
            "```",
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


def outcome(workplace: Path, files: dict[str, bytes | None], command: str) -> tuple[int, str]:
    """Run a command where `files` are, and return its exit code and what it said on standard error."""
    import shlex

    from ptexport.toolkit.cli.main import main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        shutil.copytree(workplace, folder)
        for path, content in files.items():
            write(folder / path, content)
        before = listing(folder)
        code: int | str | None = 0
        said = io.StringIO()
        with (
            contextlib.chdir(folder),
            mock.patch.object(sys, "argv", ["ptexport", *shlex.split(command)]),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            try:
                main()
            except SystemExit as e:
                code = e.code
        assert listing(folder) == before, f"{command}: something was left behind"
    assert isinstance(code, int)
    return code, said.getvalue().strip()


def write(path: Path, content: bytes | None) -> None:
    """Write, remove or damage a file."""
    if content is None:
        path.unlink()
    elif content == b"flipped":
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def listing(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def tiny_workplace() -> Iterator[Path]:
    """Make `model`, `run`, `bundle` and `rows.csv`."""
    from tiny import ROWS, Quiet, save_model, train_tiny

    from ptexport.exporters.config import ExportConfig
    from ptexport.exporters.export import export
    from ptexport.toolkit.cli.progress_bars import silence_libraries

    silence_libraries()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [f"{text},{label}\n" for text, label in ROWS]
        (folder / "rows.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
        train_tiny(save_model(folder / "model", "llama"), folder / "rows.csv", "[P*2] {text} [P]", folder / "run")
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(folder / "cache")}):
            export(ExportConfig(runs=(folder / "run",), out=folder / "bundle"), Quiet())
        shutil.rmtree(folder / "cache")
        yield folder


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "COLUMNS": "200"}
    with tiny_workplace() as place:
        Path(sys.argv[1]).write_text(page(place), encoding="utf-8")
