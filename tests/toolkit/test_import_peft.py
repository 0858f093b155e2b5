"""Adapters that PEFT wrote answer from a bundle as they do from PEFT, one row at a time and unpadded."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tiny import LABELS, Quiet, worst
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ptexport.exporters.export import ExportConfig, export
from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, PtexportError
from ptexport.toolkit.cli import cli
from ptexport.toolkit.import_peft import ImportConfig, import_peft
from ptexport.toolkit.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's

CONFIGS: dict[str, Callable[[str], Any]] = {
    "P_TUNING": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=24),
    "PROMPT_TUNING": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "PREFIX_TUNING": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
    "LORA": lambda task: LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules="all-linear"),
}
TEXTS = ["the film was bright", "slow", "a very dull story and a bad film", "is it good?"]
TEMPLATE = "{text} it was"


@pytest.fixture(scope="session")
def pooled_bert(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a pooler, which those saved with a language-model head lack."""
    folder = tmp_path_factory.mktemp("models") / "pooled-bert"
    torch.manual_seed(1)
    AutoModel.from_pretrained(bert).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


@pytest.fixture
def base_of(pooled_bert: Path, model_of: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda architecture: pooled_bert if architecture == "bert" else model_of(architecture)


def save_adapter(base: Path, config: Any, folder: Path, *, labels: int = 2) -> PeftModel:
    """Make an adapter whose weights are random and none of them small, and save it as PEFT does."""
    torch.manual_seed(2)
    if config.peft_type == "LORA" and "gpt2" in base.name:
        config.fan_in_fan_out = True  # of its Conv1D, which PEFT would warn of
    if config.task_type == "SEQ_CLS":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    adapted.eval().save_pretrained(folder)
    return adapted


@torch.no_grad()
def peft_logits(adapted: PeftModel, base: Path, text: str) -> NDArray[np.float32]:
    """PEFT's own forward pass over what the tokenizer makes of a string, as its users call it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    causal_lm = adapted.peft_config["default"].task_type == "CAUSAL_LM"
    logits = adapted(**tokenizer(TEMPLATE.format(text=text) if causal_lm else text, return_tensors="pt")).logits[0]
    if not causal_lm:
        return logits.numpy()
    ids = [
        tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in words])
        for words in (("great", "good"), ("terrible", "bad"))
    ]
    return np.array([logits[-1, label].mean() for label in ids], dtype=np.float32)


def imported(adapter: Path, out: Path, task: str, **options: Any) -> Run:
    if task == "CAUSAL_LM":
        options = {"labels": LABELS, "template": TEMPLATE, **options}
    import_peft(ImportConfig(adapter=adapter, out=out, **options), Quiet())
    return Run.read(out)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "SEQ_CLS"), ("gpt2", "SEQ_CLS"), ("llama", "SEQ_CLS"), ("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM")],
)
def test_a_bundle_answers_as_peft_does(
    kind: str, architecture: str, task: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of(architecture)
    adapted = save_adapter(base, CONFIGS[kind](task), tmp_path / "adapter", labels=3)
    run = imported(tmp_path / "adapter", tmp_path / "run", task)
    assert run.config.imported is not None
    assert (run.config.imported.peft_type, run.config.training, run.metrics) == (kind, None, None)
    manifest = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "bundle"), Quiet())
    assert worst(manifest.parity) < 1e-4
    engine = Engine.open(tmp_path / "bundle")
    expected = np.stack([peft_logits(adapted, base, text) for text in TEXTS])
    assert np.ptp(expected) > 0.1
    assert np.abs(engine.logits(TEXTS) - expected).max() <= 1e-4
