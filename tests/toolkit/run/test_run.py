"""A run folder read back, and one that is not what it says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ptexport.runtime.errors import RunError
from ptexport.toolkit.run.run import Run

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
