"""Texts and ids through the batcher of a real engine: the answers are those of `Engine.predict`."""

import asyncio
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptexport.runtime import Engine, Prediction
from ptexport.runtime.engine.answer import BatchRecord
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.text_encoder import TokenIds
from ptexport.runtime.errors import BusyError, DataError, TooLongError

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
TEXTS = [" ".join(["slow", "bright", "it"][: 1 + i % 3] * (1 + i % 5)) for i in range(100)]
LONG = "slow bright it " * 40


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(GOLDEN / "reviews")


def differs(got: list[Prediction], need: list[Prediction]) -> bool:
    """Whether predictions differ by more than rounding, which depends on the batch."""
    return len(got) != len(need) or any(
        g.label != n.label or g.probabilities != pytest.approx(n.probabilities, abs=1e-5)
        for g, n in zip(got, need, strict=True)
    )


def ids_of(engine: Engine, texts: list[str]) -> list[TokenIds]:
    encodings = engine.task().encode(engine._state.get(), texts, range(len(texts)))
    return [TokenIds(list(encoding.ids), list(encoding.type_ids)) for encoding in encodings]


def test_ids_are_predicted_as_their_texts(engine: Engine) -> None:
    need, ids = engine.predict(TEXTS), ids_of(engine, TEXTS)
    answer = engine.task().submit(ids).result(60)
    assert not differs(answer.items, need)
    assert answer.tokens == sum(map(len, ids))
    assert differs(engine.task().submit(ids[1:] + ids[:1]).result(60).items, need), "the control: other texts differ"


def test_logits_are_those_of_the_probabilities(engine: Engine) -> None:
    answer = engine.task().submit(TEXTS[:9], with_logits=True, top_k=1).result(60)
    logits = engine.logits(TEXTS[:9])
    for item, row in zip(answer.items, logits, strict=True):
        ((label, logit),) = (item.logits or {}).items()
        assert [label] == list(item.probabilities) == [item.label]
        assert logit == pytest.approx(float(row.max()), abs=1e-4)
    for item in engine.task().submit(TEXTS[:9], with_logits=True).result(60).items:
        scores = {label: math.exp(logit) for label, logit in (item.logits or {}).items()}
        softmax = {label: score / sum(scores.values()) for label, score in scores.items()}
        assert softmax == pytest.approx(item.probabilities, abs=1e-5)
    assert engine.task().submit(["slow"]).result(60).items[0].logits is None


def test_a_text_that_is_too_long_is_cut_or_refused(engine: Engine) -> None:
    cut, whole = engine.task().submit([LONG, "slow"]).result(60).items
    assert (cut.truncated, whole.truncated) == (True, False)
    with pytest.raises(TooLongError, match=r"^text 70: got more tokens than the \d+ that fit; shorten it, or allow"):
        engine.task().submit(["slow"] * 70 + [LONG], truncate=False).result(60)
    assert len(engine.task().submit(["slow"] * 70, truncate=False).result(60).items) == 70


def test_ids_that_do_not_fit(engine: Engine) -> None:
    longest = engine.manifest.task.max_length
    (row,) = ids_of(engine, [LONG])
    assert len(engine.task().submit([row]).result(60).items) == 1, "as long as a row may be"
    for ids, types, message in (
        ([], [], f"row 1: got 0 ids, need 1 to {longest}"),
        ([*row.ids, 1], [*row.type_ids, 0], f"row 1: got {longest + 1} ids, need 1 to {longest}"),
        ([-1], [0], "row 1: got an id out of range, need 0 to"),
        ([2**63], [0], "row 1: got an id out of range"),
        ([10**6], [0], "row 1: got an id out of range"),
        ([1], [2], "row 1: got a token type other than 0 and 1"),
    ):
        with pytest.raises(DataError, match=f"^{message}"):
            engine.task().submit([row, TokenIds(ids, types)]).result(60)


def awaited(ask: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    return lambda texts: asyncio.run(ask(texts))


def test_what_is_refused_before_it_is_submitted(engine: Engine) -> None:
    with pytest.raises(DataError, match="got one string, need a list"):
        engine.task().submit("slow")
    with pytest.raises(DataError, match="top_k: got 0"):
        engine.submit_all(["slow"], top_k=0)
    batcher = Batcher(max_waiting=5)
    with Engine.open(GOLDEN / "reviews", batcher=batcher) as own:
        batcher._engine.submit(threading.Event().wait, 0.5)
        futures = [own.task().submit(["slow"] * 3), own.submit_all(["slow"] * 2)]
        for ask in (own.task().submit, own.submit_all, awaited(own.predict_async), awaited(own.predict_all_async)):
            with pytest.raises(BusyError, match="got 1 texts with 5 waiting"):
                ask(["slow"])
        assert [len(future.result(60).items) for future in futures] == [3, 2]


def test_texts_given_to_submit_may_change_afterwards(engine: Engine) -> None:
    texts = TEXTS[:70]
    future = engine.task().submit(texts)
    texts[:] = ["changed"] * 70
    assert not differs(future.result(60).items, engine.predict(TEXTS[:70]))


def caller(engine: Engine, task: str, need: dict[str, Prediction], seed: int, wrong: list[str]) -> int:
    """Ask for random texts on an event loop of its own, cancel a third of it; returns how many were answered."""
    chance = random.Random(seed)

    async def one() -> bool:
        texts = chance.choices(TEXTS, k=chance.choice([1, 1, 2, 5, 20, 70]))
        delay, patience = chance.random() * 0.05, chance.random() * 0.1 if chance.random() < 0.3 else None
        await asyncio.sleep(delay)
        try:
            async with asyncio.timeout(patience):
                got = await engine.predict_async(texts, task=task)
        except TimeoutError:
            return False
        if differs(got, [need[text] for text in texts]):
            wrong.append(f"seed {seed}")
        return True

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(one() for _ in range(30))))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("max_batch_tokens", [None, 40])
def test_many_loops_threads_and_engines_with_cancellations(max_batch_tokens: int | None) -> None:
    records: list[BatchRecord] = []
    batcher = Batcher(max_batch_tokens=max_batch_tokens, on_batch=records.append)
    with (
        Engine.open(GOLDEN / "reviews", batcher=batcher) as reviews,
        Engine.open(GOLDEN / "both", batcher=batcher) as both,
    ):
        asked = [(reviews, "reviews"), (both, "tone"), (both, "mood")]
        need = {task: dict(zip(TEXTS, one.predict(TEXTS, task=task), strict=True)) for one, task in asked}
        wrong: list[str] = []
        answered: list[int] = []

        def ask(number: int) -> None:
            one, task = asked[number % 3]
            answered.append(caller(one, task, need[task], number, wrong))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (wrong, len(answered)) == ([], 6)
        assert 60 < sum(answered) < 180, "some were cancelled"
        assert np.mean([record.rows for record in records]) > (5 if max_batch_tokens is None else 1)
        for _ in range(100):
            if batcher.waiting == 0:
                break
            threading.Event().wait(0.02)
        assert (batcher.waiting, list(batcher._queue)) == (0, [])
        caller(both, "tone", need["mood"], 0, wrong)
        assert wrong, "the control: with another task's predictions it is noticed"


def test_all_tasks_of_texts_that_are_too_long_for_one_pass() -> None:
    with Engine.open(GOLDEN / "both") as engine:
        texts = [LONG, *TEXTS[:70], LONG, ""]
        got = asyncio.run(engine.predict_all_async(texts))
        for name in engine.tasks:
            assert not differs([by_task[name] for by_task in got], engine.predict(texts, task=name))
        assert got[0]["tone"].truncated
        assert differs([by_task["tone"] for by_task in got], engine.predict(texts, task="mood")), "the control"
        rows = engine.submit_all([LONG]).result(60).tokens
        assert rows == sum(engine.task(name).submit([LONG]).result(60).tokens for name in engine.tasks)
