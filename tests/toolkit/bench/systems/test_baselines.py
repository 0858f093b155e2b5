"""The baselines have the logits of the bundle, on tiny models."""

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
from tiny import Quiet

from ptexport.runtime import Engine
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench.speed.prepare import own_graph_worker, prepare_baseline
from ptexport.toolkit.bench.systems import encoder_onnx, graph, hf, llama_cpp, openvino, peft_seqcls
from ptexport.toolkit.bench.systems.baselines import BASELINES, SETTING
from ptexport.toolkit.bench.systems.case import Case, make_case
from ptexport.toolkit.bench.systems.transformers_torch import TorchModel
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.run.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # the baselines', which their processes ignore too
BATCHES = (["the film was very bright", "a slow and dull story"], ["the"])  # texts of equal numbers of tokens each

HARDWARE = Hardware(threads=1)

Logits = Callable[[list[str]], list[list[float]]]


def case_of(run_folder: Path) -> Case:
    run = Run.read(run_folder)
    return make_case(run, find_checkpoint(run.config.model))


def opened(name: str, case: Case, folder: Path) -> Logits:
    """Prepare and open a baseline in this process."""
    baseline = BASELINES[name]
    prepares, opens = (
        import_module(f"ptexport.toolkit.bench.systems.{m}") for m in (baseline.prepares, baseline.system)
    )
    folder.mkdir(exist_ok=True)
    prepares.prepare(case, folder, HARDWARE)
    of_texts: Logits = opens.SYSTEM(case, folder, HARDWARE).logits
    return of_texts


def eager(case: Case, folder: Path) -> Logits:
    return TorchModel(case, "fp32", "eager", "cpu").logits


IN_PROCESS: dict[str, Callable[[Case, Path], Logits]] = {
    "peft": partial(opened, "peft"),
    "peft-seqcls": partial(opened, "peft-seqcls"),
    "transformers": eager,
}


def with_another_embedding(case: Case) -> Case:
    embeddings = case.prompt_embeddings.copy()
    embeddings[0] = 0
    return replace(case, prompt_embeddings=embeddings)


def logits(of_texts: Logits) -> NDArray[np.float32]:
    return np.concatenate([of_texts(texts) for texts in BATCHES])


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
def test_a_baseline_has_the_logits_of_the_bundle(
    name: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And not if one prompt embedding is another."""
    case = case_of(request.getfixturevalue(f"{family}_run"))
    expected = bundle_logits(request.getfixturevalue(f"{family}_bundle"))
    assert difference(logits(IN_PROCESS[name](case, tmp_path / "same")), expected) < 1e-4
    assert difference(logits(IN_PROCESS[name](with_another_embedding(case), tmp_path / "other")), expected) > 1e-3


@pytest.mark.parametrize("name", ["plain-onnx", "transformers-onnx"])
def test_an_export_has_the_logits_of_its_model(name: str, bert_run: Path, bert_bundle: Path, tmp_path: Path) -> None:
    """One export, with another prompt than the bundle: like Transformers with that prompt, and not like the bundle."""
    other = with_another_embedding(case_of(bert_run))
    exported = logits(opened(name, other, tmp_path))
    assert difference(exported, logits(eager(other, tmp_path))) < 1e-4
    assert difference(exported, bundle_logits(bert_bundle)) > 1e-3


@pytest.mark.parametrize("module", [graph, llama_cpp, openvino])
def test_torch_is_not_imported_without_need(module: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module.__name__}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


@pytest.mark.soak
def test_an_encoder_in_the_graph_computes_the_prompt(llama_run: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """And not from other ids; since the graph takes them as an input, it cannot be folded."""
    case = case_of(llama_run)
    expected = bundle_logits(llama_bundle)
    assert difference(logits(opened("encoder-onnx", case, tmp_path)), expected) < 1e-4
    info = msgspec.json.decode((tmp_path / graph.INFO).read_bytes(), type=graph.GraphInfo)
    structs.replace(info, prompt_ids=info.prompt_ids[::-1]).write(tmp_path)
    assert difference(logits(graph.SYSTEM(case, tmp_path, HARDWARE).logits), expected) > 1e-3
    with pytest.raises(BenchError, match="without an encoder, need one; leave it out"):
        encoder_onnx.prepare(replace(case, config=structs.replace(case.config, encoder=None)), tmp_path, HARDWARE)


@pytest.mark.soak  # installs packages
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_optimum_with_packages_of_its_own_has_the_bundles_logits(family: str, request: pytest.FixtureRequest) -> None:
    case = case_of(request.getfixturevalue(f"{family}_run"))
    expected = bundle_logits(request.getfixturevalue(f"{family}_bundle"))
    start = prepare_baseline("optimum-onnx", BASELINES["optimum-onnx"], case, HARDWARE, Quiet())
    with start() as worker:
        assert worker.receive()["files"] > 0
        assert difference(logits(lambda texts: worker.request(texts)["logits"]), expected) < 1e-4


@pytest.mark.soak  # installs packages
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_openvino_has_the_bundles_logits(family: str, request: pytest.FixtureRequest) -> None:
    """In bf16, where the processor has it, other ones."""
    bundle: Path = request.getfixturevalue(f"{family}_bundle")
    expected = bundle_logits(bundle)
    with own_graph_worker("openvino", BASELINES["openvino"], bundle, HARDWARE, Quiet())() as worker:
        assert worker.receive()["setting"].endswith("fp32")
        assert difference(logits(lambda texts: worker.request(texts)["logits"]), expected) < 1e-4
    with own_graph_worker("openvino-bf16", BASELINES["openvino-bf16"], bundle, HARDWARE, Quiet())() as worker:
        if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
            with pytest.raises(BenchError, match="need BF16; leave it out"):
                worker.receive()
            return
        assert worker.receive()["setting"].endswith("bf16")
        assert 1e-4 < difference(logits(lambda texts: worker.request(texts)["logits"]), expected) < 0.1


def test_openvino_is_for_cpus(llama_bundle: Path) -> None:
    with pytest.raises(BenchError, match="openvino: is measured on CPUs only; leave it out, or use --provider cpu"):
        openvino.SYSTEM(None, llama_bundle, Hardware(threads=1, provider="cuda"))


def test_peft_for_sequence_classification_refuses_other_pooling(bert_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"peft-seqcls: got pooling 'mask' with a bias, need .*; leave it out"):
        peft_seqcls.prepare(case_of(bert_run), tmp_path, HARDWARE)


def test_older_transformers_get_the_base_of_rotary_embeddings(llama_run: Path, tmp_path: Path) -> None:
    """Transformers 4 reads it at the top of config.json, else it uses 10,000: optimum-onnx had other logits."""
    case = case_of(llama_run)
    config = json.loads((Path(case.config.model) / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 12_345.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hf._config(replace(case, config=structs.replace(case.config, model=str(tmp_path)))).rope_theta == 12_345.0


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("name", ["peft-fp16", "peft-bf16", "transformers-fp16", "transformers-bf16"])
def test_a_fixed_setting_in_lower_precision(
    name: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its logits are those of fp32 within its tolerance, but not the same.

    A wholly different prompt is the control: zeros in one embedding are within bf16's rounding on these models.
    """
    case = case_of(request.getfixturevalue(f"{family}_run"))
    baseline = BASELINES[name]
    (tmp_path / SETTING).write_text(json.dumps({"setting": baseline.setting}))
    other = replace(case, prompt_embeddings=-20 * case.prompt_embeddings)
    if baseline.prepares is not None:
        import_module(f"ptexport.toolkit.bench.systems.{baseline.prepares}").prepare(case, tmp_path, HARDWARE)
    system = import_module(f"ptexport.toolkit.bench.systems.{baseline.system}").SYSTEM
    opened_ = system(case, tmp_path, HARDWARE)
    assert opened_.setting == f"{name[-4:]}, eager"
    assert all(path.name != SETTING for path in opened_.task_files)
    expected = np.array(eager(case, tmp_path)(BATCHES[0]))
    worst = np.abs(np.array(opened_.logits(BATCHES[0])) - expected).max() / np.ptp(expected)
    assert 1e-6 < worst < baseline.tolerance
    another = np.array(eager(other, tmp_path)(BATCHES[0]))
    assert np.abs(another - expected).max() / np.ptp(expected) > baseline.tolerance
