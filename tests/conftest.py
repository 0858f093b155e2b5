"""Fixtures: tiny models, rows, runs and one exported bundle of each family; see tiny.py."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from tiny import ROWS, Quiet, save_model, train_tiny

from ptexport.exporters.export import ExportConfig, export

logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the tests' traces out of the user's cache."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(path)
    return path


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of an architecture, once."""
    folder = tmp_path_factory.mktemp("models")
    return functools.cache(lambda architecture: save_model(folder / f"tiny-{architecture}", architecture))


@pytest.fixture(scope="session")
def llama(model_of: Callable[[str], Path]) -> Path:
    return model_of("llama")


@pytest.fixture(scope="session")
def mistral(model_of: Callable[[str], Path]) -> Path:
    return model_of("mistral")


@pytest.fixture(scope="session")
def bert(model_of: Callable[[str], Path]) -> Path:
    return model_of("bert")


@pytest.fixture(scope="session")
def roberta(model_of: Callable[[str], Path]) -> Path:
    return model_of("roberta")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 40 labelled rows."""
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def llama_run(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "[P*2] Review: {text} It was [P*2]"
    return train_tiny(llama, rows_file, template, tmp_path_factory.mktemp("runs") / "llama-run")


@pytest.fixture(scope="session")
def llama_bundle(llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on a causal model, its leading prompt folded; do not change it, copy it."""
    out = tmp_path_factory.mktemp("bundles") / "reviews"
    export(ExportConfig(runs=(llama_run,), out=out), Quiet())
    return out


@pytest.fixture(scope="session")
def bert_run(bert: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "[P*2] {text} [P] it was [MASK]"
    return train_tiny(bert, rows_file, template, tmp_path_factory.mktemp("runs") / "bert-run")


@pytest.fixture(scope="session")
def bert_bundle(bert_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on a masked model; do not change it, copy it."""
    out = tmp_path_factory.mktemp("bundles") / "masked-reviews"
    export(ExportConfig(runs=(bert_run,), out=out), Quiet())
    return out
