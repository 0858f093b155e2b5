"""A run folder read back, and one that is not what it says."""

import functools
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ptexport.runtime.errors import RunError
from ptexport.toolkit.run.run import Run

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1" / "run"
FILES = ["config.json", "metrics.json", "weights.safetensors", "tokenizer.json"]


@pytest.fixture
def folder(llama_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_run, tmp_path / "run"))


def test_a_run_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    run = Run.read(folder)
    (tmp_path / "again").mkdir()
    run.write(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert run.metrics.trainable_parameters == sum(
        array.size for name, array in run.trained.items() if name.startswith("encoder.")
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["test_accuracy"] <= 1
    assert (metrics["method"], metrics["n_train"], metrics["seed"]) == ("p-tuning", 28, 0)


@pytest.mark.parametrize("name", [*FILES, "check_rows.jsonl"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: missing; need a run folder made by 'ptexport train'"):
        Run.read(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="train again"):
        Run.read(folder)


@pytest.mark.parametrize(
    ("change", "message"), [({"format": 3}, "got format 3, need 2"), ({"lr": 1}, "unknown field `lr`")]
)
def test_another_format_or_an_unknown_field(folder: Path, change: dict[str, int], message: str) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(RunError, match=message):
        Run.read(folder)


def test_a_run_of_format_1_is_read(tmp_path: Path) -> None:
    """Its renamed fields and arrays are there, and it is written as format 2."""
    run = Run.read(GOLDEN)
    old = json.loads((GOLDEN / "config.json").read_text())
    assert old["format"] == 1
    assert (run.config.train_backbone, run.config.open_vocabulary) == (old["tune_backbone"], old["open_answers"])
    assert (run.config.pooling, run.config.contextual_calibration) == (old["read"], old["prior_correction"])
    assert msgspec.to_builtins(run.config.settings) == old["training"]
    assert run.arrays.label_weights.shape[0] == len(old["labels"])
    run.write(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 2
    assert Run.read(tmp_path).config == run.config


def test_in_what_a_training_fell_short(llama_run: Path) -> None:
    metrics = Run.read(llama_run).metrics
    assert metrics is not None
    changed = functools.partial(msgspec.structs.replace, metrics)
    assert metrics.shortfall(None) is None
    assert changed(abstain_below=0.9).shortfall(0.99) is None
    assert "lower --abstain" in str(metrics.shortfall(0.99))
    assert "continue with --resume" in str(changed(stopped="interrupted").shortfall(None))
    assert "use a lower --lr" in str(changed(stopped="diverged").shortfall(0.99))


def test_weights_that_lack_what_is_baked(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    del weights["task.label_weights"]
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(RunError, match=r"need task\.prompt_embeddings and others"):
        Run.read(folder)


def test_what_is_baked_is_what_the_encoder_makes(llama_run: Path) -> None:
    """Made again by hand, from the trained weights alone."""
    import torch

    from ptexport.toolkit.prompt.encoders import PromptEncoder

    run = Run.read(llama_run)
    encoder = PromptEncoder("lstm", 4, run.config.backbone.embedding_width, scale=1.0)
    prefix = "encoder."
    encoder.load_state_dict(
        {n.removeprefix(prefix): torch.from_numpy(a) for n, a in run.trained.items() if n.startswith(prefix)}
    )
    with torch.no_grad():
        np.testing.assert_allclose(encoder().numpy(), run.arrays.prompt_embeddings, atol=1e-6)
