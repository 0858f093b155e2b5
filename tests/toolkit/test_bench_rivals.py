"""What a bundle is timed against answers as it does, on tiny models."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from ptexport.runtime import Engine
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.case import Case, make_case
from ptexport.toolkit.bench.systems import RIVALS as NAMED
from ptexport.toolkit.bench.systems import System, encoder_onnx, peft_eager, peft_seqcls, plain_onnx
from ptexport.toolkit.bench.systems.transformers_torch import Scorer
from ptexport.toolkit.bench.workers import make_ready
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # rivals', which their processes ignore too
BATCHES = (["the film was very bright", "a slow and dull story"], ["the"])  # texts of equal numbers of tokens each

Answers = Callable[[list[str]], list[list[float]]]


def case_of(run_folder: Path) -> Case:
    run = Run.read(run_folder)
    return make_case(run, find_checkpoint(run.config.model))


def opened(module: type[System], case: Case, folder: Path) -> Answers:
    return module(case, folder, 1).logits


def eager(case: Case, folder: Path) -> Answers:
    return Scorer(case, "fp32", "eager").logits


RIVALS: dict[str, Callable[[Case, Path], Answers]] = {
    "peft": partial(opened, peft_eager.System),
    "peft-seqcls": partial(opened, peft_seqcls.System),
    "transformers": eager,
}


def with_another_row(case: Case) -> Case:
    rows = case.prompt_rows.copy()
    rows[0] = 0
    return replace(case, prompt_rows=rows)


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
    assert difference(logits(RIVALS[name](case, tmp_path)), expected) < 1e-4
    assert difference(logits(RIVALS[name](with_another_row(case), tmp_path)), expected) > 1e-3


def test_a_plain_export_answers_as_the_model_it_was_made_of(bert_run: Path, bert_bundle: Path, tmp_path: Path) -> None:
    """One export, of another prompt than the bundle's: as Transformers with that prompt, and not as the bundle."""
    other = with_another_row(case_of(bert_run))
    plain_onnx.prepare(other, tmp_path)
    answered = logits(plain_onnx.System(other, tmp_path, 1).logits)
    assert difference(answered, logits(eager(other, tmp_path))) < 1e-4
    assert difference(answered, bundle_logits(bert_bundle)) > 1e-3


@pytest.mark.soak
def test_an_encoder_in_the_graph_makes_the_rows(llama_run: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """And not from other rows of its own; a graph that takes its ids cannot have them folded away."""
    case = case_of(llama_run)
    encoder_onnx.prepare(case, tmp_path)
    system = encoder_onnx.System(case, tmp_path, 1)
    expected = bundle_logits(llama_bundle)
    assert difference(logits(system.logits), expected) < 1e-4
    system._prompt_ids = system._prompt_ids[::-1].copy()
    assert difference(logits(system.logits), expected) > 1e-3
    with pytest.raises(BenchError, match="without an encoder; leave it out"):
        encoder_onnx.prepare(replace(case, config=structs.replace(case.config, encoder=None)), tmp_path)


@pytest.mark.soak  # installs packages
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_optimum_in_packages_of_its_own_answers_as_the_bundle_does(family: str, request: pytest.FixtureRequest) -> None:
    case = case_of(request.getfixturevalue(f"{family}_run"))
    expected = bundle_logits(request.getfixturevalue(f"{family}_bundle"))
    start = make_ready("optimum-onnx", NAMED["optimum-onnx"], case, 1, lambda stage: None)
    with start() as worker:
        assert worker.read()["files"] > 0
        assert difference(logits(lambda texts: worker.ask(texts)["logits"]), expected) < 1e-4


def test_peft_for_sequence_classification_is_not_asked_what_its_head_does_not_read(
    bert_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=r"peft-seqcls: reads .* and this run reads 'mask' with a bias; leave it out"):
        peft_seqcls.System(case_of(bert_run), tmp_path, 1)
