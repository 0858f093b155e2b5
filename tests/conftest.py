"""Fixtures: tiny models, rows, runs and one exported bundle of each family; see tiny.py.

What takes long is made once for all xdist workers, in a cache that ends with the test session.
"""

import logging
import os
import resource
import time
from collections.abc import Callable, Generator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from tiny import ROWS, Quiet, save_model, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.toolkit.store.cache import cached_folder

logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--max-seconds", type=float, help="Fail a test that takes longer.")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests in soak.txt the marker `soak`."""
    names = set((Path(__file__).parent / "soak.txt").read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in names:
            item.add_marker(pytest.mark.soak)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail slow tests.

    The lesser of elapsed time, which other programs lengthen, and CPU time, which waiting threads lengthen, counts.
    """
    limit = item.config.getoption("max_seconds")
    started, used = time.perf_counter(), cpu_seconds()
    outcome = yield
    took = min(time.perf_counter() - started, cpu_seconds() - used)
    if limit is not None and took > limit and item.get_closest_marker("soak") is None:
        pytest.fail(f"takes {took:.0f} s, need at most {limit:g}; split it, or mark it soak")
    return outcome


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the tests' traces out of the user's cache, and share them between workers."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    path.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(path)
    return path


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Make something for the whole test session, in a folder of that name; do not change it, copy it."""
    return cached_folder("tests", name.replace("/", "-"), make=lambda folder: make(folder / name)) / name


@pytest.fixture(scope="session")
def model_of(cache_home: Path) -> Callable[[str], Path]:
    """Save a tiny model of an architecture, once."""
    return lambda architecture: made_once(f"tiny-{architecture}", lambda at: save_model(at, architecture))


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
def rows_file(cache_home: Path) -> Path:
    """A CSV of 40 labelled rows."""
    lines = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    return made_once("rows.csv", lambda at: at.write_text(lines, encoding="utf-8"))


@pytest.fixture(scope="session")
def llama_run(llama: Path, rows_file: Path) -> Path:
    template = "[P*2] Review: {text} It was [P*2]"
    return made_once("llama-run", lambda at: train_tiny(llama, rows_file, template, at))


@pytest.fixture(scope="session")
def llama_bundle(llama_run: Path) -> Path:
    """A bundle on a causal model, its leading prompt folded; do not change it, copy it."""
    return made_once("reviews", lambda at: export(ExportConfig(runs=(llama_run,), out=at), Quiet()))


@pytest.fixture(scope="session")
def bert_run(bert: Path, rows_file: Path) -> Path:
    return made_once("bert-run", lambda at: train_tiny(bert, rows_file, "[P*2] {text} [P] it was [MASK]", at))


@pytest.fixture(scope="session")
def bert_bundle(bert_run: Path) -> Path:
    """A bundle on a masked model; do not change it, copy it."""
    return made_once("masked-reviews", lambda at: export(ExportConfig(runs=(bert_run,), out=at), Quiet()))
