"""Training on states read once, or once a step: the same losses and gradients as reading whole rows."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ptexport
from tiny import LABELS, ROWS, Quiet, save_model
from torch import Tensor
from torch.nn import functional

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.toolkit.models.classifier import PromptClassifier
from ptexport.toolkit.prompt.scoring import EncodedRows
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.training.inputs import read_inputs
from ptexport.toolkit.training.loop import Training
from ptexport.toolkit.training.loss import Loss, score_batches
from ptexport.toolkit.training.plan import Plan, make_plan
from ptexport.toolkit.training.prefix_cache import PrefixCache
from ptexport.toolkit.training.train import train

TEMPLATES = [
    "{text} [P*3]",
    "Review: {text} It was [P*3]",
    "Review: {text} [P] It was [P*2] very",
    "Question: {text} Answer: {text_b} [P*3]",
    "Question: {text} [P*2] Answer: {text_b} is",
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of very different lengths, one of them empty; one a row, and two."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [("", "the film", "positive")]
    rows += [(text * (1 + i % 4), "it was " * (i % 3) + text, label) for i, (text, label) in enumerate(ROWS)]
    lines = [f"{text},{label}\n" for text, _, label in rows]
    (folder / "texts.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")
    lines = [",".join(row) + "\n" for row in rows]
    (folder / "pairs.csv").write_text("text,text_b,label\n" + "".join(lines), encoding="utf-8")
    return folder


def plan_of(model: Path, rows: Path, template: str, **settings: object) -> Plan:
    given = TrainSettings(lr=1e-2, **settings)  # type: ignore[arg-type]
    data = rows / ("pairs.csv" if "{text_b}" in template else "texts.csv")
    config = TrainConfig(model=str(model), data=str(data), template=template, labels=LABELS, settings=given)
    return make_plan(read_inputs(config, Quiet()), Quiet(), None)


def losses_and_gradients(plan: Plan, *, caches_prefixes: bool) -> list[Tensor]:
    """Of a batch of each three rows, and the dev rows' logits."""
    settings = plan.inputs.config.settings
    torch.manual_seed(0)
    prompt = plan.prompt_model.prompt(plan.inputs.template)
    training = Training(prompt, {}, settings, len(plan.train.encodings))
    scorer = dataclasses.replace(plan.scorer, caches_prefixes=caches_prefixes)
    score_train, score_dev = score_batches(scorer, prompt, (plan.train, plan.dev), settings)
    loss = Loss(prompt, settings, scorer, plan.train, score_train)
    found = [scorer.logits(prompt, plan.dev.encodings, score_dev)]
    for start in range(0, 12, 3):
        found.append(torch.tensor(loss.with_gradients([[start, start + 1, start + 2]])))
        found += [parameter.grad.clone() for parameter in prompt.parameters() if parameter.grad is not None]
    assert len(found) == 1 + 4 * (1 + len(training.parameters))
    return found


def difference(plan: Plan) -> float:
    whole = losses_and_gradients(plan, caches_prefixes=False)
    cut = losses_and_gradients(plan, caches_prefixes=True)
    assert max(float(tensor.abs().max()) for tensor in whole) > 0.1  # else the difference says nothing
    return max(float((a - b).abs().max()) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_losses_and_gradients_are_those_of_whole_rows(template: str, cache_mb: int, causal: Path, rows: Path) -> None:
    plan = plan_of(causal, rows, template, cache_mb=cache_mb)
    assert plan.scorer.caches_prefixes
    assert difference(plan) < 1e-5


@pytest.mark.parametrize("fault", ["positions", "mask"])
def test_the_comparison_finds_faults(fault: str, causal: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions off by one, or padding that is looked at."""
    join = PrefixCache._join

    def faulty(rows: PrefixCache, batch: list[int]) -> tuple[Tensor, Tensor]:
        past, mask = join(rows, batch)
        if fault == "mask":
            return past, torch.ones_like(mask)
        return functional.pad(past, (0, 0, 1, 0)), functional.pad(mask, (1, 0), value=1)

    monkeypatch.setattr(PrefixCache, "_join", faulty)
    assert difference(plan_of(causal, rows, TEMPLATES[1])) > 1e-3


def read_whole(plan: Plan) -> Plan:
    """The same, with what stands before the texts in every row."""
    encoder = TextEncoder.from_json(plan.compiled.tokenizer_json(), fields=plan.inputs.template.fields)
    labels = plan.prompt_model.verbalizer.labels
    learn, dev = (EncodedRows.encode(rows, encoder, labels) for rows in (plan.inputs.data.train, plan.inputs.data.dev))
    scorer = dataclasses.replace(plan.scorer, encoder=encoder, folded_ids=[])
    return dataclasses.replace(plan, train=learn, dev=dev, scorer=scorer)


def leading_difference(plan: Plan) -> float:
    whole, once = (losses_and_gradients(made, caches_prefixes=False) for made in (read_whole(plan), plan))
    return max(float((a - b).abs().max()) for a, b in zip(whole, once, strict=True))


@pytest.mark.parametrize("template", ["[P*3] Review: {text} is", "It was [P*2] {text_b} [P]"])
def test_a_leading_prompt_is_read_once_a_step(template: str, causal: Path, rows: Path) -> None:
    plan = plan_of(causal, rows, template.replace("{text_b}", "{text} Answer: {text_b}"))
    n_tokens: list[tuple[int, int]] = []
    table = plan.prompt_model.classifier.table
    hook = table.register_forward_hook(lambda module, given, output: n_tokens.append(tuple(given[0].shape)))
    assert leading_difference(plan) < 1e-5
    hook.remove()
    n_leading = len(plan.scorer.folded_ids)
    assert n_leading > 0
    assert n_tokens[-2] == (1, n_leading)
    longest = max(len(encoding) for encoding in plan.train.encodings[9:12])
    assert n_tokens[-1] == (3, longest), "and the rows hold the rest alone"


def test_the_comparison_finds_a_gradient_that_is_lost(llama: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(llama, rows, "[P*3] {text} It was")
    monkeypatch.setattr(PromptClassifier, "prefix_kv", torch.no_grad()(PromptClassifier.prefix_kv))
    assert leading_difference(plan) > 1e-3


@pytest.mark.parametrize("template", ["[P] {text} [P]", "the [P] film {text} [P]"])
def test_texts_after_a_virtual_token_are_read_each_time(template: str, llama: Path, rows: Path) -> None:
    assert not plan_of(llama, rows, template).scorer.caches_prefixes


def test_texts_of_a_masked_model_are_read_each_time(bert: Path, rows: Path) -> None:
    assert not plan_of(bert, rows, "{text} [P] [MASK]").scorer.caches_prefixes


def test_each_text_is_read_once_as_far_as_there_is_room(
    llama: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values take 2 layers x 2 x 2 heads x 8 floats, 256 bytes a token."""
    plan = plan_of(llama, rows, "{text} [P*3]")
    n_compute: list[int] = []
    read = PrefixCache._compute
    monkeypatch.setattr(PrefixCache, "_compute", lambda rows, batch: n_compute.append(len(batch)) or read(rows, batch))
    with torch.no_grad():
        leading = plan.prompt_model.classifier.prefix_kv([], torch.zeros(1, 32))
    n_tokens = [len(encoding) - 3 for encoding in plan.train.encodings]
    room = 256 * sum(n_tokens[:4])
    cut = PrefixCache(plan.prompt_model.classifier, plan.train.encodings, leading, cache_bytes=room + 255, batch_rows=3)
    assert n_compute == [3, 1]
    assert cut.free_bytes == 255
    tensors = plan.scorer.task_tensors(plan.prompt_model.prompt(plan.inputs.template))
    kept, mixed = cut.logits([0, 1, 2], tensors), cut.logits([0, 1, 2, 5], tensors)
    assert n_compute == [3, 1, 1]
    torch.testing.assert_close(kept, mixed[:3], rtol=0, atol=1e-5)


def test_what_stands_before_the_rows_builds_no_graph(llama: Path, rows: Path) -> None:
    """Nor does any weight of the model get a gradient, wherever the virtual tokens stand."""
    plan = plan_of(llama, rows, "Review: {text} It was [P*3]")
    seen: list[bool] = []
    layer = plan.prompt_model.classifier.base.layers[0]
    hook = layer.register_forward_hook(lambda module, given, output: seen.append(output.requires_grad))
    losses_and_gradients(plan, caches_prefixes=True)
    hook.remove()
    assert seen.count(True) == 4  # the four steps' tails
    assert all(parameter.grad is None for parameter in plan.prompt_model.backbone.model.parameters())


def test_no_logits_of_the_vocabulary(llama: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(llama, rows, "[P] {text} [P]")
    projection = type(plan.prompt_model.backbone.model.get_output_embeddings())
    widths: list[int] = []
    forward = projection.forward
    monkeypatch.setattr(projection, "forward", lambda self, x: widths.append(self.out_features) or forward(self, x))
    losses_and_gradients(plan, caches_prefixes=False)
    assert widths
    assert max(widths) < plan.prompt_model.classifier.vocab


def test_what_is_kept_does_not_change_what_is_learned(llama: Path, rows_file: Path) -> None:
    def learned(cache_mb: int) -> np.ndarray:
        settings = TrainSettings(lr=2e-2, epochs=3, cache_mb=cache_mb)
        config = TrainConfig(model=str(llama), data=str(rows_file), template="{text} It was [P*3]", labels=LABELS,
                             settings=settings, encoder="none")  # fmt: skip
        return train(read_inputs(config, Quiet()), Quiet()).arrays.prompt_embeddings

    np.testing.assert_allclose(learned(0), learned(1024), atol=1e-4)


def test_accumulated_batches_are_one_batch(llama: Path, rows: Path) -> None:
    """Same loss and gradients as all rows at once, classes weighed or not; fewer steps."""
    for balance, template in ((False, "{text} [P*3]"), (True, "{text} [P*3]"), (False, "[P*3] {text} it was")):
        plan = plan_of(llama, rows, template, balance=balance, accumulate=3, batch_size=4)
        prompt = plan.prompt_model.prompt(plan.inputs.template)
        training = Training(prompt, {}, plan.inputs.config.settings, 25)
        assert training.steps_per_epoch == 3  # of seven batches
        loss = Loss(
            prompt, plan.inputs.config.settings, plan.scorer, plan.train, plan.scorer.score_batch(plan.train.encodings)
        )
        found = []
        for batches in ([[0, 1, 2, 3, 4, 5, 6]], [[0, 1, 2], [3, 4, 5], [6]]):
            prompt.zero_grad()
            value = loss.with_gradients(batches)
            found.append([torch.tensor(value), *(parameter.grad.clone() for parameter in prompt.parameters())])
        for one, three in zip(*found, strict=True):
            torch.testing.assert_close(one, three, rtol=0, atol=1e-5)


def test_steps_in_bf16(llama: Path, rows: Path) -> None:
    """About the same gradients, but not the same; what is trained, and scores that choose the epoch, stay fp32."""
    exact, rough = (
        losses_and_gradients(plan_of(llama, rows, "{text} It was [P*3]", autocast=autocast), caches_prefixes=True)
        for autocast in (None, "bf16")
    )
    torch.testing.assert_close(rough[0], exact[0], rtol=0, atol=0)
    assert {tensor.dtype for tensor in rough} == {torch.float32}
    largest = max(float((a - b).abs().max()) for a, b in zip(exact[1:], rough[1:], strict=True))
    assert 1e-4 < largest < 0.3


def test_bf16_where_the_device_has_none(llama: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Quiet, "warning", lambda self, message: told.append(message))
    for capabilities, n_told in (({"avx2": True, "avx512_bf16": False}, 1), ({"avx512_bf16": True}, 0)):
        told.clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        plan_of(llama, rows, "{text} [P]", autocast="bf16")
        assert [message.split(":")[0] for message in told].count("autocast bf16") == n_told


def test_the_options_reach_the_run(llama: Path, rows_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = {"model": llama, "data": rows_file, "template": "{text} [P]", "labels": LABELS, "out": out, "epochs": 1}
    given |= {"accumulate": 2, "autocast": "bf16", "cache-mb": 0}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    done = ptexport("train", *words)
    assert done.returncode == 0, done.stderr
    found = Run.read(out).config.settings
    assert (found.accumulate, found.autocast, found.cache_mb) == (2, "bf16", 0)
