"""Adapters that PEFT wrote answer from a bundle as they do from PEFT, one row at a time and unpadded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import ptexport
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
from tiny import LABELS, Quiet, sample, save_model, train_tiny, worst
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.runtime import Engine
from ptexport.runtime.errors import DataError, PtexportError
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.imports.config import ImportConfig
from ptexport.toolkit.imports.import_peft import import_peft
from ptexport.toolkit.imports.inputs import read_adapter
from ptexport.toolkit.run.run import Run

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
    import_peft(read_adapter(ImportConfig(source=str(adapter), out=out, **options), Quiet()), Quiet())
    return Run.read(out)


@pytest.mark.parametrize(
    ("kind", "architecture", "task"),
    sample(
        [
            (kind, *case)
            for kind in CONFIGS
            for case in (
                ("bert", "SEQ_CLS"),
                ("llama", "SEQ_CLS"),
                ("llama", "CAUSAL_LM"),
                ("gpt2", "SEQ_CLS"),
                ("gpt2", "CAUSAL_LM"),
            )
        ],
        ("P_TUNING", "llama", "SEQ_CLS"),
        ("PROMPT_TUNING", "bert", "SEQ_CLS"),
        ("PREFIX_TUNING", "llama", "CAUSAL_LM"),
        ("LORA", "llama", "SEQ_CLS"),
        ("LORA", "bert", "SEQ_CLS"),
    ),
)
def test_a_bundle_answers_as_peft_does(
    kind: str, architecture: str, task: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of(architecture)
    adapted = save_adapter(base, CONFIGS[kind](task), tmp_path / "adapter", labels=3)
    run = imported(tmp_path / "adapter", tmp_path / "run", task)
    assert run.config.imported is not None
    assert (run.config.imported.peft_type, run.config.settings, run.metrics) == (kind, None, None)
    assert {row.label for row in run.check_rows} == {None}, "the built-in rows' labels are of another task"
    manifest = export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    assert worst(manifest.task.parity) < 1e-4
    engine = Engine.open(tmp_path / "bundle")
    expected = np.stack([peft_logits(adapted, base, text) for text in TEXTS])
    assert np.ptp(expected) > 0.1
    assert np.abs(engine.logits(TEXTS) - expected).max() <= 1e-4


@pytest.mark.parametrize(("kind", "fault"), [("P_TUNING", "a row of zeros"), ("PREFIX_TUNING", "a position of zeros")])
def test_the_comparison_sees_one_virtual_token(kind: str, fault: str, llama: Path, tmp_path: Path) -> None:
    """The control: another adapter than PEFT had, by one virtual token, and the answers are apart."""
    adapted = save_adapter(llama, CONFIGS[kind]("CAUSAL_LM"), tmp_path / "adapter")
    change_tensors(tmp_path / "adapter", lambda tensors: tensors["prompt_embeddings"][1].zero_())
    imported(tmp_path / "adapter", tmp_path / "run", "CAUSAL_LM")
    export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    expected = np.stack([peft_logits(adapted, llama, text) for text in TEXTS])
    assert np.abs(Engine.open(tmp_path / "bundle").logits(TEXTS) - expected).max() > 0.01, fault


@pytest.mark.parametrize("kind", sample(CONFIGS, "P_TUNING", "PREFIX_TUNING"))
def test_virtual_tokens_stand_before_bos(kind: str, llama: Path, tmp_path: Path) -> None:
    base = with_post_processor(llama, tmp_path / "llama-bos", "<s> $A")
    adapted = save_adapter(base, CONFIGS[kind]("CAUSAL_LM"), tmp_path / "adapter")
    run = imported(tmp_path / "adapter", tmp_path / "run", "CAUSAL_LM")
    template = {"P_TUNING": "[P*3][BOS]{text} it was", "PROMPT_TUNING": "[P*3][BOS]{text} it was",
                "PREFIX_TUNING": "[P*3]{text} it was", "LORA": TEMPLATE}[kind]  # fmt: skip
    assert run.config.template == template
    export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    expected = np.stack([peft_logits(adapted, base, text) for text in TEXTS])
    assert np.abs(Engine.open(tmp_path / "bundle").logits(TEXTS) - expected).max() <= 1e-4


def test_an_empty_text_without_a_token(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A prefix has no state to read, so that an empty text is refused, and parity leaves it out."""
    save_adapter(model_of("gpt2"), CONFIGS["PREFIX_TUNING"]("CAUSAL_LM"), tmp_path / "adapter")
    imported(tmp_path / "adapter", tmp_path / "run", "CAUSAL_LM", template=None)
    manifest = export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    assert manifest.task.parity.rows == 256 + 2
    engine = Engine.open(tmp_path / "bundle")
    assert engine.predict(["slow"])[0].label in ("positive", "negative")
    with pytest.raises(DataError, match="text 1: got no token, need at least one, since the template adds none"):
        engine.predict(["slow", " "])


def test_the_command(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    save_adapter(llama, CONFIGS["PROMPT_TUNING"]("SEQ_CLS"), tmp_path / "adapter")
    command = ["import", "peft", str(tmp_path / "adapter"), "--out", str(tmp_path / "run"), "--rows", str(rows_file)]
    said = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "PROMPT_TUNING for SEQ_CLS" in said.stdout
    assert "LABEL_0, LABEL_1" in said.stdout, "the model's configuration names no others"
    said = CliRunner().invoke(cli, [*command, "--force", "--labels", "no,yes", "--json"], catch_exceptions=False)
    record = json.loads(said.stdout)
    assert (record["labels"], record["settings"], record["encoder"]) == (["no", "yes"], None, None)
    assert record["imported"]["max_abs_diff"] < 1e-4
    assert len(Run.read(tmp_path / "run").check_rows) == 40
    assert "PROMPT_TUNING" in CliRunner().invoke(cli, ["inspect", str(tmp_path / "run")], catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("architecture", "own_layers"),
    sample(
        [
            ("llama", []),
            ("roberta", []),
            ("electra", []),
            ("distilbert", ["pre_classifier", "classifier"]),
            ("albert", ["pooler", "classifier"]),
            ("bert", ["pooler", "classifier"]),
        ],
        ("roberta", []),
        ("bert", ["pooler", "classifier"]),
    ),
)
def test_lora_is_exported_in_one_go(
    architecture: str, own_layers: list[str], model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """With the classifier's own layers, which PEFT trains too; the merged backbone is in the temporary run only."""
    base = model_of(architecture)
    config = CONFIGS["LORA"]("SEQ_CLS")
    if own_layers:
        config.modules_to_save = own_layers
    adapted = save_adapter(base, config, tmp_path / "adapter")
    done = ptexport("export", tmp_path / "adapter", "--out", tmp_path / "bundle", "--labels", "no,yes")
    assert done.returncode == 0, done.stderr
    expected = np.stack([peft_logits(adapted, base, text) for text in TEXTS])
    assert np.ptp(expected) > 0.1
    engine = Engine.open(tmp_path / "bundle")
    assert engine.labels == ["no", "yes"]
    assert np.abs(engine.logits(TEXTS) - expected).max() <= 1e-4


def test_an_adapter_and_a_run_in_one_bundle(rows_file: Path, tmp_path: Path) -> None:
    llama = save_model(tmp_path / "llama", "llama", num_hidden_layers=1)
    run = train_tiny(llama, rows_file, "[P] {text}", tmp_path / "run")
    adapted = save_adapter(llama, CONFIGS["PROMPT_TUNING"]("CAUSAL_LM"), tmp_path / "moods")
    options = ["--labels", LABELS, "--template", TEMPLATE]
    done = ptexport("export", run, tmp_path / "moods", "--out", tmp_path / "bundle", *options)
    assert done.returncode == 0, done.stderr
    engine = Engine.open(tmp_path / "bundle")
    assert sorted(engine.tasks) == ["moods", "run"]
    expected = np.stack([peft_logits(adapted, llama, text) for text in TEXTS])
    assert np.abs(engine.tasks["moods"].logits(TEXTS) - expected).max() <= 1e-4


def test_options_of_imports(llama: Path, llama_run: Path, tmp_path: Path) -> None:
    save_adapter(llama, CONFIGS["PROMPT_TUNING"]("CAUSAL_LM"), tmp_path / "adapter")
    export = ["export", "--out", tmp_path / "bundle"]
    for option, value in (("--labels", "a,b"), ("--template", "{text}"), ("--max-length", 8), ("--model", llama)):
        done = ptexport(*export, llama_run, option, value)
        assert done.returncode == 2
        assert f"{option}: is for PEFT adapters and classifiers, a run has its own; leave it out." in done.stderr
    done = ptexport(*export, tmp_path / "adapter")
    assert (done.returncode, "has no label words; give --labels" in done.stderr) == (1, True)
    done = ptexport(*export, tmp_path / "adapter", tmp_path / "adapter", "--rows", tmp_path / "rows.csv")
    assert (done.returncode, "rows: got 2 runs, need one" in done.stderr) == (1, True)
    (tmp_path / "bundle").mkdir()
    done = ptexport(*export, tmp_path / "adapter", "--labels", LABELS)
    assert "bundle: exists already" in done.stderr, "before the import"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def pickle_alone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def with_post_processor(model: Path, folder: Path, layout: str) -> Path:
    shutil.copytree(model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [("<s>", tokenizer.token_to_id("<s>")), ("<mask>", tokenizer.token_to_id("<mask>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single=layout, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("kind", "task", "damage", "options", "message"),
    [
        ("P_TUNING", "CAUSAL_LM", lambda f: (f / "adapter_config.json").unlink(), {}, "not a PEFT adapter, has no"),
        ("P_TUNING", "CAUSAL_LM", lambda f: (f / "adapter_config.json").write_text("{"), {}, "cannot be read"),
        ("P_TUNING", "CAUSAL_LM", lambda f: (f / "adapter_config.json").write_text("[]"), {}, "got list, need an obj"),
        ("P_TUNING", "CAUSAL_LM", pickle_alone, {}, "has only adapter_model.bin, a pickle"),
        ("P_TUNING", "CAUSAL_LM", lambda f: (f / "adapter_model.safetensors").unlink(), {}, "has no adapter_model.saf"),
        ("P_TUNING", "CAUSAL_LM", lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), {}, "cannot be read"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, peft_type="IA3"), {}, "got peft_type IA3, need P_TUNING"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, task_type=None), {}, "got task_type None, need SEQ_CLS or"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, alora_invocation_tokens=[1]), {}, "sets alora_invocation_tok"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, layer_replication=[[0, 2], [1, 2]]), {}, "sets layer_repl"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, r="much"), {}, "adapter"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, base_model_name_or_path=None), {}, "names no base model"),
        ("LORA", "CAUSAL_LM", lambda f: change_config(f, base_model_name_or_path="gone"), {}, "model .gone.: not"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"labels": None}, "has no label words; give --labels"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"labels": "a=greats,b=bad"}, "its word 'greats' is 2 tokens"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"template": "[P] {text}"}, "PEFT puts its virtual tokens first"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"template": "{text} {text_b}"}, "got no 'text_b', the template"),
        ("LORA", "SEQ_CLS", lambda f: None, {"template": "{text} was"}, "a classification layer takes the text"),
        ("LORA", "SEQ_CLS", lambda f: None, {"labels": "a,b,c"}, "labels 'a,b,c': got 3, .* has 2"),
        ("LORA", "SEQ_CLS", lambda f: change_tensors(f, lambda t: t.pop("base_model.model.score.weight")), {},
         "has no classification layer"),
        ("LORA", "CAUSAL_LM", lambda f: change_tensors(f, lambda t: t.popitem()), {}, "is only in the adapted model"),
        ("LORA", "CAUSAL_LM", lambda f: change_tensors(f, lambda t: t.update(more=torch.ones(1))), {},
         "more is only in the adapter file"),
        ("P_TUNING", "CAUSAL_LM", lambda f: change_tensors(f, lambda t: t.update(more=torch.ones(1))), {},
         "holds more too"),
        ("P_TUNING", "CAUSAL_LM", lambda f: None, {"model": "narrow"}, "embeddings of narrow are 16 wide"),
        ("PREFIX_TUNING", "CAUSAL_LM", lambda f: None, {"model": "narrow"}, "not for model narrow .size mismatch"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"model": "narrow"}, "not for model narrow"),
        ("LORA", "CAUSAL_LM", lambda f: None, {"model": "gpt2"}, "not for model tiny-gpt2"),
        ("P_TUNING", "CAUSAL_LM", lambda f: None, {"model": "bert"}, "got the masked model tiny-bert"),
        ("P_TUNING", "CAUSAL_LM", lambda f: None, {"model": "eos"}, "adds <mask> to texts"),
    ],
)  # fmt: skip
def test_what_is_refused(
    kind: str,
    task: str,
    damage: Callable[[Path], object],
    options: dict[str, Any],
    message: str,
    llama: Path,
    model_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    save_adapter(llama, CONFIGS[kind](task), tmp_path / "adapter")
    damage(tmp_path / "adapter")
    others = {
        "narrow": lambda: save_model(tmp_path / "narrow", "llama", hidden_size=16),
        "eos": lambda: with_post_processor(llama, tmp_path / "eos", "$A <mask>"),
    }
    if "model" in options:
        make = others.get(options["model"], lambda: model_of(options["model"]))
        options = {**options, "model": str(make())}
    with pytest.raises(PtexportError, match=message):
        imported(tmp_path / "adapter", tmp_path / "runs" / "run", task, **options)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("bert", {}, "tiny-bert: the checkpoint lacks bert.pooler.dense.bias, bert.pooler.dense.weight"),
        ("roberta", {}, "the layers classifier.dense, classifier.out_proj, need one"),
        ("albert", {}, "tiny-albert: the checkpoint lacks albert.pooler.bias, albert.pooler.weight"),
        ("electra", {}, "electra has no pooler like BERT's"),
        (
            "pooled-bert",
            {"modules_to_save": ["pooler", "classifier"]},
            "holds base_model.*pooler.* too; need only virtual tokens",
        ),
    ],
)
def test_heads_that_are_refused(
    architecture: str, changes: dict[str, Any], message: str, pooled_bert: Path, model_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    base = pooled_bert if architecture == "pooled-bert" else model_of(architecture)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **changes)
    save_adapter(base, config, tmp_path / "adapter")
    with pytest.raises(PtexportError, match=message):
        imported(tmp_path / "adapter", tmp_path / "run", "SEQ_CLS")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`"
)
def test_what_peft_answers_otherwise_is_refused(llama: Path, tmp_path: Path) -> None:
    """LoRA on an output layer that is the embedding table too: merged, it changes both."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"])
    save_adapter(llama, config, tmp_path / "adapter")
    with pytest.raises(PtexportError, match="the logits of the run differ from those of PEFT by up to"):
        imported(tmp_path / "adapter", tmp_path / "run", "CAUSAL_LM")
    assert not (tmp_path / "run").exists()
