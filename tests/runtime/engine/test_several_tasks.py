"""A bundle of several tasks: each method with `task=` predicts as the handle of that task does, in any mix of tasks."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ptexport.runtime import DataError, Engine, EngineError, Prediction
from ptexport.runtime.bundle.folder import MODEL, TEMPLATES, TOKENIZER, Bundle
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.ort.graph import Graph

BOTH = Path(__file__).parents[2] / "golden" / "format-1" / "both"
TEXTS = [" ".join(["slow", "bright", "it"][: 1 + i % 3] * (1 + i % 5)) for i in range(70)]
LONG = "slow bright it " * 40
"""Longer than both tasks take."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(BOTH)


def close_to(got: Sequence[Prediction], need: Sequence[Prediction]) -> bool:
    """Whether predictions are the same up to rounding, which depends on the batch."""
    return len(got) == len(need) and all(
        g.label == n.label
        and g.truncated == n.truncated
        and list(g.probabilities) == list(n.probabilities)
        and g.probabilities == pytest.approx(n.probabilities, abs=1e-5)
        for g, n in zip(got, need, strict=True)
    )


@pytest.mark.parametrize("name", ["tone", "mood"])
@pytest.mark.parametrize("top_k", [None, 1])
def test_every_method_takes_a_task(engine: Engine, name: str, top_k: int | None) -> None:
    task = engine.task(name)
    need = [task.predict([text], top_k=top_k)[0] for text in TEXTS]
    assert [len(prediction.probabilities) for prediction in need] == [top_k or 2] * len(TEXTS)
    assert close_to(engine.predict(TEXTS, task=name, top_k=top_k), need)
    assert close_to(list(engine.predict_iter(iter(TEXTS), task=name, top_k=top_k)), need)
    assert close_to(asyncio.run(engine.predict_async(TEXTS, task=name, top_k=top_k)), need)
    assert close_to(asyncio.run(task.predict_async(TEXTS, top_k=top_k)), need)
    alone = np.concatenate([task.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(engine.logits(TEXTS, task=name), alone, atol=1e-4)


def test_texts_of_different_tasks_share_batches(engine: Engine) -> None:
    names = [("tone", "mood")[number % 2] for number in range(len(TEXTS))]
    need = [engine.predict([text], task=name)[0] for text, name in zip(TEXTS, names, strict=True)]
    assert close_to(engine.predict(TEXTS, task=names), need)
    other = [engine.predict([text], task="mood")[0] for text in TEXTS]
    assert not close_to(engine.predict(TEXTS, task=names), other), "the control: the tasks differ"
    assert engine.predict([], task=[]) == []


@pytest.mark.parametrize("top_k", [None, 1])
def test_all_tasks_at_once(engine: Engine, top_k: int | None) -> None:
    texts = [*TEXTS, LONG, ""]
    need = {name: engine.predict(texts, task=name, top_k=top_k) for name in engine.tasks}
    for got in (engine.predict_all(texts, top_k=top_k), asyncio.run(engine.predict_all_async(texts, top_k=top_k))):
        assert all(list(by_task) == ["tone", "mood"] for by_task in got)
        for name in engine.tasks:
            assert close_to([by_task[name] for by_task in got], need[name])
    assert need["tone"][-2].truncated
    assert need["mood"][-2].truncated
    assert engine.predict_all([]) == []


def test_a_bundle_of_one_task_predicts_all_as_well(llama_bundle: Path) -> None:
    with Engine.open(llama_bundle) as engine:
        got = engine.predict_all(TEXTS)
        assert close_to([by_task["reviews"] for by_task in got], engine.predict(TEXTS))
        assert engine.predict(TEXTS[:2], task=["reviews"] * 2) == engine.predict(TEXTS[:2])


def test_a_task_is_named_or_the_only_one(engine: Engine) -> None:
    for call in (
        lambda: engine.predict(TEXTS),
        lambda: engine.predict_iter(TEXTS),
        lambda: asyncio.run(engine.predict_async(TEXTS)),
        lambda: engine.choose([]),
        lambda: engine.logits(TEXTS),
        lambda: engine.labels,
    ):
        with pytest.raises(DataError, match="task: got none, need one of tone, mood"):
            call()
    with pytest.raises(DataError, match="task 'other': unknown, need one of tone, mood"):
        engine.predict(TEXTS, task="other")
    with pytest.raises(DataError, match="task 'other': unknown"):
        engine.predict(TEXTS[:2], task=["tone", "other"])
    with pytest.raises(DataError, match="task: got 1 names and 2 texts"):
        engine.predict(TEXTS[:2], task=["tone"])
    with pytest.raises(DataError, match="text 1: got int, need a string"):
        engine.predict_all(["slow", 7])  # type: ignore[list-item]
    with pytest.raises(DataError, match="got one string, need a list"):
        engine.predict_all("slow")
    with pytest.raises(TypeError):
        engine.tasks["tone"] = engine.task("mood")  # type: ignore[index]


def test_a_multiple_choice_among_other_tasks() -> None:
    """The bundle's graph, with a second task that takes a text and a choice."""
    bundle, graph = Bundle.open(BOTH), Graph.open(BOTH / MODEL)
    tone, mood = bundle.manifest.tasks
    choice = msgspec.structs.replace(mood, fields=["text", "choice"])
    changed = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, tasks=[tone, choice]))
    templates = json.loads((BOTH / TEMPLATES).read_text(encoding="utf-8"))
    layout = templates["tasks"]["mood"]["post_processor"]
    end = next(number for number, item in enumerate(layout["single"], 1) if "Sequence" in item)
    layout["pair"] = [*layout["single"][:end], {"Sequence": {"id": "B", "type_id": 0}}, *layout["single"][end:]]
    tokenizer_json = (BOTH / TOKENIZER).read_text(encoding="utf-8")
    encoders = TaskEncoders.from_templates(tokenizer_json, templates, {"tone": tone.fields, "mood": choice.fields})
    engine = Engine(changed, OpenState(encoders, graph))
    rows = [(text, ["dull", "bright and fast", "it"]) for text in TEXTS[:9]]
    chosen = engine.choose(rows, task="mood")
    scores = [engine.logits([(text, option) for option in options], task="mood") for text, options in rows]
    right = [options[(two[:, 0] - two[:, 1]).argmax()] for (_, options), two in zip(rows, scores, strict=True)]
    assert [prediction.label for prediction in chosen] == right
    assert close_to(list(engine.choose_iter(iter(rows), task="mood")), chosen)
    assert [list(p.probabilities) for p in engine.choose(rows, task="mood", top_k=1)] == [[label] for label in right]
    with pytest.raises(DataError, match=r"choose: got task tone, need a template with \{choice\}; use predict"):
        engine.choose(rows, task="tone")
    assert len(engine.predict(TEXTS, task="tone")) == len(TEXTS)


def test_a_closed_engine_closes_its_tasks() -> None:
    with Engine.open(BOTH) as engine:
        task = engine.task("tone")
    for call in (lambda: task.predict(TEXTS), lambda: engine.predict_all(TEXTS), lambda: task.logits(TEXTS)):
        with pytest.raises(EngineError, match="engine: is closed; open the bundle again"):
            call()
    assert task.labels == engine.tasks["tone"].labels == ["positive", "negative"], "what the manifest says stays"
