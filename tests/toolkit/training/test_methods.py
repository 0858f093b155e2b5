"""Every method on tiny models: it trains what it says and nothing else, exports, passes parity and answers."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from baked import bake_run, check_parity
from tiny import LABELS, Quiet, sample, train_tiny, worst

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.parity.compare import fail_on_difference
from ptexport.runtime import Engine
from ptexport.runtime.errors import ExportError, ModelError, PtexportError, TrainError
from ptexport.toolkit.methods import BackboneTraining
from ptexport.toolkit.models.backbone import load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.template import Shot, Template
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.loop import Training
from ptexport.toolkit.training.loss import Loss
from ptexport.toolkit.training.plan import make_plan
from ptexport.toolkit.training.search import word_ids
from ptexport.toolkit.training.train import train

LINEAR = {"labels": "positive,negative", "head": "linear"}
CASES = {
    "p-tuning": ("[P] {text} it was [P]", "[P] {text} it was [MASK]", {}),
    "p-tuning-tuned": ("[P] {text} it was [P]", "[P] {text} it was [MASK]", {"train_backbone": True}),
    "p-tuning-v2": ("[P*4] {text} it was", "[P*4] {text} it was [MASK]", {}),
    "p-tuning-v2-linear": ("[P*4] {text} it", "[P*4] {text}", LINEAR),
    "prefix": ("[P*3] {text} it was", "[P*3] {text} it was [MASK]", {}),
    "prompt-tuning": ("[P*3] {text}", "[P*3] {text} [MASK]", {"init": "words"}),
    "lora": ("{text} it was", "{text} it was [MASK]", {}),
    "lora-linear": ("Review: {text}", "{text}", LINEAR),
    "fine-tune": ("Review: {text}", "{text}", LINEAR),
    "pet": ("{text} it was", "{text} it was [MASK]", {}),
    "manual": ("{text} it was", "{text} it was [MASK]", {"contextual_calibration": True}),
    "search": ("{text} it [P*2]", "{text} [P*2] [MASK]", {}),
}
TUNED = {"p-tuning-tuned", "lora", "lora-linear", "fine-tune", "pet"}


def method_of(case: str) -> str:
    return case.removesuffix("-linear").removesuffix("-tuned")


def trained(case: str, family: str, model: Path, rows_file: Path, folder: Path) -> Run:
    causal, masked, options = CASES[case]
    template = causal if family == "llama" else masked
    return Run.read(train_tiny(model, rows_file, template, folder, method=method_of(case), **options))


@pytest.mark.parametrize(
    ("case", "family"),
    sample(
        itertools.product(CASES, ["llama", "bert", "roberta"]),
        *((case, ("llama", "bert")[number % 2]) for number, case in enumerate(CASES)),
    ),
)
def test_from_rows_to_answers(
    case: str, family: str, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = trained(case, family, request.getfixturevalue(family), rows_file, tmp_path / "run")
    manifest = export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    assert manifest.task.method == method_of(case) + " --tune-backbone" * case.endswith("tuned")
    engine = Engine.open(tmp_path / "bundle")
    answers = [answer.label for answer in engine.predict([row.text for row in run.check_rows])]
    right = [answer == row.label for answer, row in zip(answers, run.check_rows, strict=True)]
    assert np.mean(right) == pytest.approx(run.metrics.test_accuracy), "what training measured"
    assert (run.config.trained_backbone is not None) == (case in TUNED) == (tmp_path / "run" / "backbone").is_dir()
    names = {name.split(".")[0] for name in run.trained}
    expected = {"prefix"} if "v2" in case or case == "prefix" else {"encoder"} if "[P" in CASES[case][0] else set()
    assert names == expected | ({"head"} if case.endswith("linear") or case == "fine-tune" else set())


@pytest.mark.parametrize(
    ("fault", "family"),
    sample(
        itertools.product(["a position less", "a layer's keys", "no keys"], ["llama", "bert", "roberta"]),
        ("a position less", "llama"),
        ("a layer's keys", "bert"),
        ("no keys", "llama"),
    ),
)
def test_wrong_prefixes_are_caught(
    fault: str, family: str, rows_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The controls: parity fails as soon as the graph holds other keys and values than were trained."""
    model = request.getfixturevalue(family)
    run = trained("p-tuning-v2", family, model, rows_file, tmp_path / "run")
    prefix_kv = run.arrays.prefix_kv
    assert prefix_kv is not None
    wrong = {
        "a position less": prefix_kv[..., 1:, :],
        "a layer's keys": np.concatenate([prefix_kv[:1] * [[[[[[0]]]], [[[[1]]]]]], prefix_kv[1:]]).astype(np.float32),
        "no keys": prefix_kv[..., :0, :],
    }[fault]
    backbone = load_backbone_of(run.config, tmp_path / "run")
    (tmp_path / "baked").mkdir()
    arrays = dataclasses.replace(run.arrays, prefix_kv=wrong)
    bake_run(dataclasses.replace(run, arrays=arrays), backbone, tmp_path / "baked")
    parity = check_parity(run, backbone, tmp_path / "baked")
    with pytest.raises(ExportError, match="largest difference"):
        fail_on_difference("task", parity)


@pytest.mark.parametrize("architecture", sample(["llama", "bert", "gpt2", "electra"], "llama", "bert"))
@pytest.mark.parametrize("tuned", ["lora", "all"])
def test_what_is_trained_is_what_is_written(
    tuned: BackboneTraining, architecture: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every trained parameter moved by as much as it is large: the checkpoint answers as the model in memory did."""
    frozen = load_backbone(find_checkpoint(str(model_of(architecture))), "words")
    trainable = TrainableBackbone.of(frozen, tuned, lora_rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter += 0.1 * torch.randn_like(parameter)
        ids = torch.arange(10, 16)[None]
        before, trained = (backbone.model(input_ids=ids).logits for backbone in (frozen, trainable.backbone))
        written = trainable.write(tmp_path / "model", "words")
        torch.testing.assert_close(written.model(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)
    assert (trained - before).abs().max() > 0.1
    if tuned == "lora":
        assert all(".lora_" in name for name in trainable.parameters)
        table, old = (backbone.model.get_input_embeddings().weight for backbone in (written, frozen))
        torch.testing.assert_close(table, old, atol=0, rtol=0)


@pytest.mark.parametrize("case", sample(sorted(TUNED), "lora-linear", "pet"))
def test_a_tuned_backbone_is_an_ordinary_checkpoint(case: str, bert: Path, rows_file: Path, tmp_path: Path) -> None:
    """Other weights than before, LoRA's merged; the model that was given is as it was."""
    before = {path.name: path.read_bytes() for path in bert.iterdir()}
    run = trained(case, "bert", bert, rows_file, tmp_path / "run")
    backbone = load_backbone_of(run.config, tmp_path / "run")
    assert backbone.facts.fingerprint == run.config.trained_backbone.fingerprint != run.config.backbone.fingerprint  # type: ignore[union-attr]
    assert not [name for name in backbone.model.state_dict() if "lora" in name]
    assert {path.name: path.read_bytes() for path in bert.iterdir()} == before


def test_examples_are_read_once(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """They become constant keys and values, and no text of theirs is in the bundle."""
    train_tiny(llama, rows_file, "Review: {text} It was", tmp_path / "run", method="manual", n_shots=3, max_length=100)
    run = Run.read(tmp_path / "run")
    assert len({shot.answer for shot in run.config.shots[:2]}) == 2, "labels take turns"
    manifest = export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    assert manifest.task.folded_tokens > 20
    spec = json.loads((tmp_path / "bundle" / "tokenizer.json").read_text())["post_processor"]
    names = [item["SpecialToken"]["id"] for item in spec["single"] if "SpecialToken" in item]
    assert ("".join(names), set(spec["special_tokens"])) == ("ĠItĠwas", set(names)), "and of the examples nothing"


def test_examples_are_the_template_filled_in() -> None:
    """Word for word, line breaks and spaces of the template included."""
    template = Template.parse("Review: {text}\n  So: [MASK]")
    filled = template.with_shots([Shot(text=" good [P] ", text_b=None, answer="great")])
    words = "".join(" " * piece.spaced + piece.words for piece in filled.pieces[: -len(template.pieces)])
    assert words == "Review: good [P]\n  So: great\n\n"
    assert filled.pieces[-len(template.pieces) :] == template.pieces


def test_a_prior_is_taken_from_the_logits(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """Zhao et al. 2021: an answer to no content comes out even, on the average of its probabilities' logarithms."""
    for name, corrected in (("plain", False), ("fair", True)):
        train_tiny(llama, rows_file, "{text} it was", tmp_path / f"{name}-run", method="manual",
                   contextual_calibration=corrected)  # fmt: skip
        export(ExportConfig(runs=(tmp_path / f"{name}-run",), out=tmp_path / name), Quiet())
    texts = ["N/A", "[MASK]", ""]
    plain, fair = (torch.from_numpy(Engine.open(tmp_path / name).logits(texts)) for name in ("plain", "fair"))
    torch.testing.assert_close(fair, plain - plain.softmax(1).mean(0).log(), atol=1e-5, rtol=0)


def test_search_finds_words(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    """Rows of the vocabulary, and better ones than it started with."""

    settings = TrainSettings(epochs=4, batch_size=8)
    config = TrainConfig(method="search", model=str(llama), data=str(rows_file), template="{text} it [P*2]",
                         labels=LABELS, settings=settings)  # fmt: skip
    run = train(read_inputs(config, Quiet()), Quiet())
    assert run.metrics.found_words is not None
    assert (len(run.metrics.found_words), run.metrics.trainable_parameters) == (2, 0)
    plan = make_plan(read_inputs(config, Quiet()), Quiet(), None)
    table, prompt = plan.prompt_model.classifier.table.weight, plan.prompt_model.prompt(plan.inputs.template)
    assert all((table == torch.from_numpy(row)).all(1).any() for row in run.arrays.prompt_embeddings[:2])

    def loss(rows: torch.Tensor) -> float:
        assert prompt.encoder is not None
        prompt.encoder.embeddings.data = rows.clone()
        return plan.scorer.accuracy(prompt, plan.train)[1]

    candidates = word_ids(WordTokenizer(plan.prompt_model.backbone.tokenizer_json), len(table))
    random = [loss(table[list(pair)].detach()) for pair in itertools.pairwise(candidates)]
    assert loss(torch.from_numpy(run.arrays.prompt_embeddings[:2])) < np.quantile(random, 0.2)


@pytest.mark.parametrize(
    ("options", "template", "message"),
    [
        ({"method": "lora"}, "[P] {text}", "has virtual tokens, which lora does not train; leave out"),
        ({"method": "p-tuning-v2"}, "{text} was", "has no virtual token for p-tuning-v2 to train"),
        ({"method": "p-tuning-v2"}, "{text} [P*2] was", "has a virtual token after other words"),
        ({"method": "prompt-tuning"}, "[P] {text} [P]", "has a virtual token after other words"),
        ({"method": "lora", "train_backbone": True}, "{text} was", "tune-backbone: is for p-tuning, got lora"),
        ({"method": "prefix", "encoder": "lstm"}, "[P] {text} was", "encoder lstm: prefix has mlp"),
        ({"method": "lora", "encoder": "none"}, "{text} was", "encoder none: lora does not use prompt encoders"),
        ({"method": "fine-tune", "head": "words"}, "{text} was", "head words: fine-tune has linear"),
        (
            {"method": "lora", "init": "words"},
            "{text} was",
            "init words: sets virtual tokens, but lora trains none; leave --init out",
        ),
        (
            {"method": "prefix", "init": "words"},
            "[P] {text}",
            "the mlp encoder computes its virtual tokens; leave --init out",
        ),
        (
            {"init": "words"},
            "[P] {text}",
            "lstm encoder computes its virtual tokens; use --encoder none, or leave --init",
        ),
        ({"method": "manual", "accumulate": 2}, "{text} was", "accumulate: is for optimizer steps, and manual takes"),
        ({"method": "search", "autocast": "bf16"}, "{text} [P]", "autocast: is for optimizer steps, and search takes"),
        (
            {"method": "manual", "contextual_calibration": True},
            "{text}",
            "prior-correction: needs logits for an empty .* add words to the",
        ),
        ({"method": "lora", "n_shots": 2}, "{text} was", "shots: is for hand-written templates, got lora"),
        ({"method": "pet", "lora_rank": 4}, "{text} was", "lora-rank 4: pet does not use LoRA; leave it out"),
        ({"method": "manual", "balance": True}, "{text} was", "balance: manual does not train on rows; leave it out"),
        ({"method": "manual", "n_shots": 99}, "{text} was", "shots 99: got 28 training rows; use fewer"),
        ({"method": "manual", "n_shots": 2}, "[BOS] {text} was", r"has \[CLS\], \[SEP\] or \[BOS\], which --shots"),
        ({"method": "lora", "lr": 1e-3}, "{text} was", "lr 0.001: lora trains no virtual tokens .* give --backbone-lr"),
        ({"method": "manual", "lr": 1e-3}, "{text} was", "no linear head; leave it out"),
        ({"backbone_lr": 1e-3}, "[P] {text} was", "p-tuning does not train the language model"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, object], template: str, message: str, llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PtexportError, match=message):
        train_tiny(llama, rows_file, template, tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "electra", "xlm-roberta"])
def test_prefixes_on_other_architectures(
    architecture: str, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    template = "[P*3] {text} it was" + " [MASK]" * (architecture in ("electra", "xlm-roberta"))
    train_tiny(model_of(architecture), rows_file, template, tmp_path / "run", method="p-tuning-v2")
    manifest = export(ExportConfig(runs=(tmp_path / "run",), out=tmp_path / "bundle"), Quiet())
    assert worst(manifest.task.parity) < 1e-4


@pytest.mark.parametrize("architecture", ["albert", "distilbert", "modernbert"])
def test_prefixes_where_there_are_no_keys_and_values_to_join(
    architecture: str, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"{architecture}: has no KV cache.*use --method p-tuning"):
        train_tiny(model_of(architecture), rows_file, "[P*3] {text} [MASK]", tmp_path / "run", method="p-tuning-v2")


def test_what_only_some_models_can(bert: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="shots 2: tiny-bert is a masked model; use a causal one"):
        train_tiny(bert, rows_file, "{text} [MASK]", tmp_path / "run", method="manual", n_shots=2)


def test_what_decays_and_what_counts_as_trained(bert: Path, rows_file: Path) -> None:
    """Biases and norms do not decay; a pooler that is not read is not trained."""
    config = TrainConfig(
        model=str(bert), data=str(rows_file), template="{text}", labels="positive,negative", method="fine-tune",
        settings=TrainSettings(),
    )  # fmt: skip
    plan = make_plan(read_inputs(config, Quiet()), Quiet(), None)
    prompt = plan.prompt_model.prompt(plan.inputs.template)
    training = Training(prompt, plan.prompt_model.trainable.parameters, plan.inputs.config.settings, 2)
    assert training.optimizer is not None
    decay = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    for name, parameter in training.parameters.items():
        assert (decay[id(parameter)] == 0) == (name.endswith("bias") or "LayerNorm" in name), name
    score = plan.scorer.score_batch(plan.train.encodings)
    Loss(prompt, plan.inputs.config.settings, plan.scorer, plan.train, score).with_gradients([[0, 1]])
    training.step()
    sizes = {name: parameter.numel() for name, parameter in training.parameters.items()}
    of_pooler = sum(size for name, size in sizes.items() if "pooler" in name)
    assert of_pooler > 0
    assert training.n_trained == sum(sizes.values()) - of_pooler
