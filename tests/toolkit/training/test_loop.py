"""Training on tiny models: what changes, what must not, and what stops it."""

import contextlib
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LABELS, Quiet

from ptexport.runtime.errors import DataError, TemplateError, TrainError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.prompt.encoders import EncoderKind, PromptEncoder
from ptexport.toolkit.run.check_rows import choose_check_rows
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.training import loop, resume
from ptexport.toolkit.training.inputs import Inputs, read_inputs
from ptexport.toolkit.training.train import train


class Recorder(Quiet):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.dev_accuracies: list[float] = []

    def step(self, done: int, total: int, loss: float) -> None:
        self.losses.append(loss)

    def epoch(self, number: int, dev_accuracy: float) -> None:
        self.dev_accuracies.append(dev_accuracy)


def config(model: Path, rows_file: Path, settings: TrainSettings, **changes: object) -> Inputs:
    given = {"template": "{text} It was [P*3]", "labels": LABELS, "max_length": 48, **changes}
    options = TrainConfig(model=str(model), data=str(rows_file), settings=settings, **given)  # type: ignore[arg-type]
    return read_inputs(options, Quiet())


@pytest.mark.parametrize("kind", ["lstm", "mlp", "none"])
@pytest.mark.parametrize("n_prompt", [1, 5])
def test_an_encoder_makes_one_row_per_virtual_token(kind: EncoderKind, n_prompt: int) -> None:
    encoder = PromptEncoder(kind, n_prompt, 32, scale=0.2)
    rows = encoder()
    assert rows.shape == (n_prompt, 32)
    rows.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_paper_s_encoder() -> None:
    """Two layers, both directions, half the width each, then Linear-ReLU-Linear."""
    shapes = {name: list(value.shape) for name, value in PromptEncoder("lstm", 3, 32, scale=1.0).named_parameters()}
    assert shapes["lstm.weight_hh_l1_reverse"] == [4 * 16, 16]
    assert shapes["lstm.weight_ih_l1"] == [4 * 16, 32]
    assert (shapes["mlp.0.weight"], shapes["mlp.2.weight"]) == ([32, 32], [32, 32])


def test_it_learns_keeps_the_best_epoch_and_repeats(llama: Path, rows_file: Path) -> None:
    settings = TrainSettings(lr=2e-2, epochs=12, patience=12, batch_size=4, seed=3)
    seen = Recorder()
    run = train(config(llama, rows_file, settings), seen)
    assert np.mean(seen.losses[-7:]) < 0.7 * np.mean(seen.losses[:7])
    assert run.metrics.dev_accuracy == max(seen.dev_accuracies) > seen.dev_accuracies[0]
    again = train(config(llama, rows_file, settings), Quiet())
    assert again.metrics.test_accuracy == run.metrics.test_accuracy
    np.testing.assert_array_equal(again.arrays.prompt_embeddings, run.arrays.prompt_embeddings)
    other = train(config(llama, rows_file, TrainSettings(lr=2e-2, epochs=1, seed=4)), Quiet())
    assert not np.allclose(other.arrays.prompt_embeddings, run.arrays.prompt_embeddings)


def test_early_stopping(llama: Path, rows_file: Path) -> None:
    seen = Recorder()
    train(config(llama, rows_file, TrainSettings(lr=1e-30, epochs=20, patience=2)), seen)
    assert len(seen.dev_accuracies) == 3


def test_the_backbone_and_the_label_words_are_frozen(
    llama: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained on is, float by float, what was loaded; the label words' rows are the head's own."""
    loaded: list[Backbone] = []
    module = importlib.import_module("ptexport.toolkit.training.plan")
    monkeypatch.setattr(module, "load_backbone", lambda *given: loaded.append(load_backbone(*given)) or loaded[-1])
    run = train(config(llama, rows_file, TrainSettings(lr=2e-2, epochs=2)), Quiet())
    before = load_backbone(find_checkpoint(str(llama)), "words")
    after = dict(loaded[0].model.named_parameters())
    for name, parameter in before.model.named_parameters():
        torch.testing.assert_close(after[name], parameter, rtol=0, atol=0)
    tokens = [[before.model.get_output_embeddings().weight[i] for i in _ids(llama, words)]
              for words in (["Ġgreat", "Ġgood"], ["Ġterrible", "Ġbad"])]  # fmt: skip
    expected = torch.stack([torch.stack(rows).mean(0) for rows in tokens])
    np.testing.assert_allclose(run.arrays.label_weights, expected.numpy(), atol=1e-7)


def test_a_linear_head_is_trained(bert: Path, rows_file: Path) -> None:
    changes = {"template": "[P] {text}", "labels": "positive,negative", "head": "linear"}
    small = train(config(bert, rows_file, TrainSettings(lr=1e-12, epochs=1), **changes), Quiet())
    large = train(config(bert, rows_file, TrainSettings(lr=1e-2, epochs=1), **changes), Quiet())
    assert np.abs(large.arrays.label_weights - small.arrays.label_weights).max() > 1e-3
    assert small.arrays.label_weights.shape == (2, 32)


def _ids(model: Path, tokens: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [int(tokenizer.token_to_id(token)) for token in tokens]


def test_rows_that_start_from_words(llama: Path, rows_file: Path) -> None:
    """At a rate of almost nothing they are still the words' embeddings: great, good, terrible, then great again."""
    changes = {"encoder": "none", "init": "words", "template": "{text} [P*5]"}
    run = train(config(llama, rows_file, TrainSettings(lr=1e-12, epochs=1), **changes), Quiet())
    table = load_backbone(find_checkpoint(str(llama)), "words").model.get_input_embeddings().weight
    words = table[_ids(llama, ["Ġgreat", "Ġgood", "Ġterrible", "Ġbad", "Ġgreat"])].numpy()
    np.testing.assert_allclose(run.arrays.prompt_embeddings, words, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "words"}, "the lstm encoder computes its virtual tokens; use --encoder none"),
        ({"pool": "mean"}, "pool mean: is for a linear head on a masked model, got a causal model"),
        ({"device": "toaster"}, "device toaster: .*; use auto or cpu"),
        ({"device": "cuda:7"}, "device cuda:7: .*; use auto or cpu"),
    ],
)
def test_what_cannot_be_trained(changes: dict[str, str], message: str, llama: Path, rows_file: Path) -> None:
    with pytest.raises(TrainError, match=message):
        train(config(llama, rows_file, TrainSettings(lr=1e-2), **changes), Quiet())


def test_an_option_that_would_do_nothing(llama: Path, rows_file: Path) -> None:
    with pytest.raises(
        TemplateError, match=r"truncate text: .* takes one text, which is truncated anyway; leave it out"
    ):
        train(config(llama, rows_file, TrainSettings(lr=1e-2), truncate="text"), Quiet())
    with pytest.raises(TemplateError, match="max length 4096: tiny-llama takes at most 128 tokens"):
        train(config(llama, rows_file, TrainSettings(lr=1e-2), max_length=4096), Quiet())


def test_rows_for_parity() -> None:
    cyrillic = [Row(where="", text=f"город {i}") for i in range(1000)]
    latin = [Row(where="", text=f"city {i}") for i in range(300)]
    empty, longest = Row(where="", text=" "), Row(where="", text="x" * 100)
    chosen = choose_check_rows([*latin, *cyrillic, empty, longest])
    assert chosen == [longest, empty, *cyrillic[:254]]
    assert choose_check_rows(latin[:3]) == latin[:3]


def test_a_loss_that_is_not_a_number_stops(llama: Path, rows_file: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss is nan after 1 steps at --lr inf; use a lower rate"):
        train(config(llama, rows_file, TrainSettings(lr=math.inf)), Quiet())


def test_a_loss_that_stops_being_a_number_keeps_the_best_epoch(llama: Path, rows_file: Path) -> None:
    """The rows grow until their gradient is no number any more, in the second epoch."""
    settings = TrainSettings(lr=1e12, epochs=20, patience=20, warmup=1.0)
    seen = Recorder()
    run = train(config(llama, rows_file, settings, encoder="none"), seen)
    assert run.metrics.stopped == "diverged"
    assert 1 <= run.metrics.epochs == len(seen.dev_accuracies) < 20
    assert np.isfinite(run.arrays.prompt_embeddings).all()
    assert run.metrics.dev_accuracy == max(seen.dev_accuracies)


class Stop(Quiet):
    """Presses Ctrl-C after so many steps, or while the state is being kept."""

    def __init__(self, after_steps: int) -> None:
        self.after_steps = after_steps

    def step(self, done: int, total: int, loss: float) -> None:
        if done == self.after_steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("after_steps", "changes"),
    [
        (1, {}),
        (5, {}),
        (6, {}),
        (6, {"method": "p-tuning-v2", "template": "[P*2] {text} It was"}),
        (6, {"method": "lora", "template": "{text} It was"}),
        (6, {"train_backbone": True}),
    ],
)
def test_going_on_within_an_epoch(after_steps: int, changes: dict[str, object], llama: Path, rows_file: Path,
                                  tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Four steps an epoch, the state kept after each: what is learned is the same, bit for bit."""
    asked = config(llama, rows_file, TrainSettings(epochs=3, patience=3), **changes)
    whole = train(asked, Quiet(), folder=tmp_path)
    (tmp_path / "resume.safetensors").unlink()
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "SAVE_PAUSE", 0)
    stopped = None
    with contextlib.suppress(KeyboardInterrupt):  # in the first epoch there is nothing to show
        stopped = train(asked, Stop(after_steps), folder=tmp_path).metrics.stopped
    assert stopped == (None if after_steps < 4 else "interrupted")
    told = Steps()
    resumed = train(asked, told, folder=tmp_path)
    assert told.first == after_steps  # that of the step whose end was not told
    assert resumed.config == whole.config, "with the fingerprint of a language model that was trained"
    for name, array in {**whole.trained, **whole.arrays.by_name()}.items():
        np.testing.assert_array_equal({**resumed.trained, **resumed.arrays.by_name()}[name], array)


class Steps(Quiet):
    """Remembers which step came first."""

    first: int | None = None

    def step(self, done: int, total: int, loss: float) -> None:
        self.first = self.first or done


def test_ctrl_c_while_the_state_is_kept(llama: Path, rows_file: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Nothing half written is left to be taken for part of the run."""
    fsyncs = []

    def fsync(file: int) -> None:
        fsyncs.append(file)
        if len(fsyncs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume.os, "fsync", fsync)
    asked = config(llama, rows_file, TrainSettings(lr=1e-2, epochs=3, patience=3))
    run = train(asked, Quiet(), folder=tmp_path)
    assert (run.metrics.stopped, run.metrics.epochs) == ("interrupted", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.safetensors"]


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from tiny import LABELS, Quiet
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.train import train

class Tight(Quiet):
    def warning(self, message):  # of cut rows: said when all is loaded, just before the first step
        size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 30_000_000, resource.RLIM_INFINITY))

rows, model, *manual = sys.argv[1:]
settings = TrainSettings(lr=1e-3, epochs=1, batch_size=512)
config = TrainConfig(model=model, data=rows, template="{text} [P]", labels=LABELS, settings=settings, manual=manual)
train(read_inputs(config, Quiet()), Tight())
"""


@pytest.mark.parametrize("manual", [[], ["{text} it was"]], ids=["in a step", "measuring by hand"])
def test_too_little_memory(manual: list[str], llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    lines = [f"{'slow ' * 200}{i},{label}\n" for i in range(500) for label in ("positive", "negative")]
    rows.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(rows), str(llama), *manual]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "TrainError: training: out of memory with 512 rows of up to 128 tokens per batch" in done.stderr
    assert done.stderr.strip().endswith("use --batch-size 256, or a lower --max-length")


class Notes(Quiet):
    """Remembers what it was told to say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def warning(self, message: str) -> None:
        self.notes.append(message)


def test_odd_rows_are_told_of(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    texts = [("great " * 60, "positive"), *((f"it was an {word}", "positive") for word in ("film", "an", "a", "story"))]
    rows.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts), encoding="utf-8")
    told = Notes()
    changes = {"template": "{text}? [P]", "dev": str(rows), "test": str(rows)}
    train(config(llama, rows, TrainSettings(lr=1e-3, epochs=1), **changes), told)
    assert told.notes == [
        "3 of 15 rows are too long with the template, so truncated; see --strict",
        "no training row has the label 'negative'",
        "5 of 5 dev rows are in the training rows too; accuracy looks too good",
        "5 of 5 test rows are in the training rows too; accuracy looks too good",
    ]
    with pytest.raises(DataError, match=r"3 of 15 rows are longer than 48 tokens .* or leave out --strict"):
        train(config(llama, rows, TrainSettings(lr=1e-3), strict=True, **changes), told)
