"""What a bundle is timed against answers as it does, on tiny models."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from ptexport.runtime import Engine
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.speed.prepare import make_ready
from ptexport.toolkit.bench.systems import encoder_onnx, graph, hf, llama_cpp, peft_seqcls
from ptexport.toolkit.bench.systems.case import Case, make_case
from ptexport.toolkit.bench.systems.rivals import RIVALS as NAMED
from ptexport.toolkit.bench.systems.transformers_torch import Scorer
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.run.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # rivals', which their processes ignore too
BATCHES = (["the film was very bright", "a slow and dull story"], ["the"])  # texts of equal numbers of tokens each

HARDWARE = Hardware(threads=1)

Answers = Callable[[list[str]], list[list[float]]]


def case_of(run_folder: Path) -> Case:
    run = Run.read(run_folder)
    return make_case(run, find_checkpoint(run.config.model))


def opened(name: str, case: Case, folder: Path) -> Answers:
    """Prepare and open a rival in this process."""
    rival = NAMED[name]
    prepares, opens = (import_module(f"ptexport.toolkit.bench.systems.{m}") for m in (rival.prepares, rival.system))
    folder.mkdir(exist_ok=True)
    prepares.prepare(case, folder, HARDWARE)
    answers: Answers = opens.System(case, folder, HARDWARE).logits
    return answers


def eager(case: Case, folder: Path) -> Answers:
    return Scorer(case, "fp32", "eager", "cpu").logits


RIVALS: dict[str, Callable[[Case, Path], Answers]] = {
    "peft": partial(opened, "peft"),
    "peft-seqcls": partial(opened, "peft-seqcls"),
    "transformers": eager,
}


def with_another_row(case: Case) -> Case:
    rows = case.prompt_embeddings.copy()
    rows[0] = 0
    return replace(case, prompt_embeddings=rows)


def logits(answers: Answers) -> NDArray[np.float32]:
    return np.concatenate([answers(texts) for texts in BATCHES])


def bundle_logits(bundle: Path) -> NDArray[np.float32]:
    engine = Engine.open(bundle, provider="cpu", threads=1)
    expected: NDArray[np.float32] = np.concatenate([engine.logits(texts) for texts in BATCHES])
    assert np.ptp(expected) > 0.1
    return expected


def difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("peft", "llama"),
        ("peft-seqcls", "llama"),
        ("transformers", "llama"),
        ("peft", "bert"),
        ("transformers", "bert"),
    ],
)
def test_a_rival_answers_as_the_bundle_does(
    name: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And not if one row of its prompt is another."""
    case = case_of(request.getfixturevalue(f"{family}_run"))
    expected = bundle_logits(request.getfixturevalue(f"{family}_bundle"))
    assert difference(logits(RIVALS[name](case, tmp_path / "same")), expected) < 1e-4
    assert difference(logits(RIVALS[name](with_another_row(case), tmp_path / "other")), expected) > 1e-3


@pytest.mark.parametrize("name", ["plain-onnx", "transformers-onnx"])
def test_an_export_answers_as_the_model_it_was_made_of(
    name: str, bert_run: Path, bert_bundle: Path, tmp_path: Path
) -> None:
    """One export, of another prompt than the bundle's: as Transformers with that prompt, and not as the bundle."""
    other = with_another_row(case_of(bert_run))
    answered = logits(opened(name, other, tmp_path))
    assert difference(answered, logits(eager(other, tmp_path))) < 1e-4
    assert difference(answered, bundle_logits(bert_bundle)) > 1e-3


@pytest.mark.parametrize("module", [graph, llama_cpp])
def test_no_torch_is_opened_for_what_needs_none(module: ModuleType) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, {module.__name__}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "False\n"


@pytest.mark.soak
def test_an_encoder_in_the_graph_makes_the_rows(llama_run: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """And not from other rows of its own; a graph that takes its ids cannot have them folded away."""
    case = case_of(llama_run)
    expected = bundle_logits(llama_bundle)
    assert difference(logits(opened("encoder-onnx", case, tmp_path)), expected) < 1e-4
    exported = msgspec.json.decode((tmp_path / graph.EXPORTED).read_bytes(), type=graph.Exported)
    structs.replace(exported, prompt_ids=exported.prompt_ids[::-1]).write(tmp_path)
    assert difference(logits(graph.System(case, tmp_path, HARDWARE).logits), expected) > 1e-3
    with pytest.raises(BenchError, match="without an encoder; leave it out"):
        encoder_onnx.prepare(replace(case, config=structs.replace(case.config, encoder=None)), tmp_path, HARDWARE)


@pytest.mark.soak  # installs packages
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_optimum_in_packages_of_its_own_answers_as_the_bundle_does(family: str, request: pytest.FixtureRequest) -> None:
    case = case_of(request.getfixturevalue(f"{family}_run"))
    expected = bundle_logits(request.getfixturevalue(f"{family}_bundle"))
    start = make_ready("optimum-onnx", NAMED["optimum-onnx"], case, HARDWARE, lambda stage: None)
    with start() as worker:
        assert worker.read()["files"] > 0
        assert difference(logits(lambda texts: worker.ask(texts)["logits"]), expected) < 1e-4


def test_peft_for_sequence_classification_is_not_asked_what_its_head_does_not_read(
    bert_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=r"peft-seqcls: reads .* and this run reads 'mask' with a bias; leave it out"):
        peft_seqcls.prepare(case_of(bert_run), tmp_path, HARDWARE)


def test_older_transformers_are_told_the_base_of_rotary_positions(llama_run: Path, tmp_path: Path) -> None:
    """Those before 5 read it at the top of config.json, and else take 10,000: optimum-onnx answered otherwise."""
    case = case_of(llama_run)
    config = json.loads((Path(case.config.model) / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 12_345.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hf._config(replace(case, config=structs.replace(case.config, model=str(tmp_path)))).rope_theta == 12_345.0
