"""llama.cpp has the logits of the bundle, on a tiny model written as GGUF."""

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tiny import Quiet
from transformers import AutoModelForCausalLM

from ptexport.runtime import Engine
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench import workers
from ptexport.toolkit.bench.speed import prepare
from ptexport.toolkit.bench.systems import llama_cpp
from ptexport.toolkit.bench.systems.baselines import BASELINES
from ptexport.toolkit.bench.systems.case import ARRAYS, CASE, Case, make_case
from ptexport.toolkit.bench.systems.transformers_torch import TorchModel
from ptexport.toolkit.bench.workers import Hardware
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.run.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")
NAME, HARDWARE = "llama-cpp", Hardware(threads=1)
BATCHES = (["the"], ["the film was very bright", "a slow and dull story"], ["a film"])  # its context grows once


def case_of(run_folder: Path, file: Path | None) -> Case:
    run = Run.read(run_folder)
    return make_case(run, replace(find_checkpoint(run.config.model), gguf=file))


def saved(case: Case, folder: Path) -> Case:
    """Write a changed case."""
    shutil.copytree(case.path, folder)
    (folder / CASE).write_bytes(msgspec.json.encode(case.config))
    arrays = {
        "prompt_embeddings": case.prompt_embeddings,
        "label_weights": case.label_weights,
        "label_bias": case.label_bias,
    }
    save_file(arrays, folder / ARRAYS)
    return Case.open(folder)


def write_gguf(folder: Path, path: Path) -> Path:
    """Write a Llama of Transformers as llama.cpp reads it, in fp32, without a tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotated in neighbouring pairs there
            halves = array.reshape(-1, 2, config.head_dim // 2, config.hidden_size)
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(case: Case, folder: Path, overlay: Path) -> NDArray[np.float32]:
    """Compute logits with the unchanged file."""
    folder.mkdir()
    llama_cpp.ChosenModel(model=str(case.config.gguf), seconds={}).write(folder)
    arguments = ["serve", BASELINES[NAME].system, str(case.path), str(folder), *HARDWARE.arguments()]
    with workers.Worker(NAME, workers.SYSTEM_WORKER, arguments, threads=1, overlay=overlay) as worker:
        assert worker.receive()["setting"] == "all F32, flash attention"
        return np.concatenate([worker.request(texts)["logits"] for texts in BATCHES])


def difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max() / np.ptp(right))


@pytest.mark.soak  # builds llama.cpp
def test_it_has_the_logits_of_the_bundle(llama: Path, llama_run: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """In fp32 except a KV cache in fp16; with a linear head too; not with another prompt embedding."""
    case = case_of(llama_run, write_gguf(llama, tmp_path / "llama.gguf"))
    engine = Engine.open(llama_bundle, provider="cpu", threads=1)
    expected = np.concatenate([engine.logits(texts) for texts in BATCHES])
    tolerance = BASELINES[NAME].tolerance
    start = prepare.prepare_baseline(NAME, BASELINES[NAME], case, HARDWARE, Quiet())
    with start() as worker:
        assert worker.receive()["files"] > 0
        got = np.concatenate([worker.request(texts)["logits"] for texts in BATCHES])
    assert difference(got, expected) < tolerance

    overlay = prepare._overlay(BASELINES[NAME].requirements, Quiet())  # in the cache by now
    assert difference(logits_of(case, tmp_path / "same", overlay), expected) < 1e-3
    embeddings = case.prompt_embeddings.copy()
    embeddings[-1] = 0
    other = saved(replace(case, prompt_embeddings=embeddings), tmp_path / "other")
    assert difference(logits_of(other, tmp_path / "another-embedding", overlay), expected) > 1e-2

    random = np.random.default_rng(0)
    head = random.standard_normal((2, case.prompt_embeddings.shape[1]), np.float32)
    config = structs.replace(case.config, word_ids=None)
    linear = replace(case, config=config, label_weights=head, label_bias=np.array([0, 1], np.float32))
    linear = saved(linear, tmp_path / "linear")
    model = TorchModel(linear, "fp32", "eager", "cpu")
    expected = np.concatenate([np.array(model.logits(texts)) for texts in BATCHES])
    assert difference(logits_of(linear, tmp_path / "states", overlay), expected) < 1e-3


def test_it_is_not_installed_for_a_backbone_without_a_gguf_file(llama_run: Path) -> None:
    class NoStage(Quiet):
        """Progress without stages: nothing is installed."""

        def stage(self, name: str) -> None:
            pytest.fail(name)

    with pytest.raises(BenchError, match=r"llama-cpp: reads a GGUF file, .* was not converted from one; leave it out"):
        prepare.prepare_baseline(NAME, BASELINES[NAME], case_of(llama_run, None), HARDWARE, NoStage())


def test_it_refuses_other_pooling_and_gpus(bert_run: Path, tmp_path: Path) -> None:
    case = case_of(bert_run, tmp_path / "bert.gguf")
    module = import_module(f"ptexport.toolkit.bench.systems.{BASELINES[NAME].prepares}")
    with pytest.raises(BenchError, match="llama-cpp: got pooling 'mask', need 'last'; leave it out"):
        module.prepare(case, tmp_path, HARDWARE)
    with pytest.raises(BenchError, match="llama-cpp: is built for CPUs only; leave it out"):
        module.prepare(case, tmp_path, Hardware(threads=1, provider="cuda"))
