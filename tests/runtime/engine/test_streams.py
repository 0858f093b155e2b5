"""Texts by the piece: as they come, in constant memory and with a control that grows; awaited, in turns; by threads."""

import asyncio
import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from ptexport.runtime import Engine, Prediction
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, Bundle
from ptexport.runtime.engine.caller import SLICE_TEXTS
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task import CHUNK_TEXTS
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import DataError
from ptexport.runtime.ort.batch_shapes import CPU_BATCH_TOKENS
from ptexport.runtime.ort.graph import Graph

TEXTS = [" ".join(["slow", "bright", "it"][: 1 + i % 3] * (1 + i % 5)) for i in range(150)]


@pytest.fixture(scope="module")
def engine(llama_bundle: Path) -> Engine:
    return Engine.open(llama_bundle)


def close_to(got: Sequence[Prediction], need: Sequence[Prediction]) -> bool:
    """Batches of other lengths round otherwise."""
    return len(got) == len(need) and all(
        g.label == n.label and g.probabilities == pytest.approx(n.probabilities, abs=1e-5)
        for g, n in zip(got, need, strict=True)
    )


def counted(n: int, read: list[int]) -> Iterator[str]:
    for number in range(n):
        read.append(number)
        yield TEXTS[number % len(TEXTS)]


def test_texts_are_read_a_chunk_at_a_time_and_answered_in_order(engine: Engine) -> None:
    read: list[int] = []
    answers = engine.predict_iter(counted(CHUNK_TEXTS + 50, read), top_k=1)
    assert read == []
    first = [next(answers)]
    assert len(read) == CHUNK_TEXTS
    first += itertools.islice(answers, CHUNK_TEXTS - 1)
    assert len(read) == CHUNK_TEXTS
    rest = list(answers)
    assert len(read) == CHUNK_TEXTS + 50
    assert close_to(first[: len(TEXTS)], engine.predict(TEXTS, top_k=1))
    assert close_to(
        rest, engine.predict([TEXTS[i % len(TEXTS)] for i in range(CHUNK_TEXTS, CHUNK_TEXTS + 50)], top_k=1)
    )
    assert list(engine.predict_iter([])) == []


def test_pairs_and_choices_as_they_come(llama_bundle: Path) -> None:
    """The bundle's graph behind templates of two texts."""
    bundle, graph = Bundle.open(llama_bundle), Graph.open(llama_bundle / MODEL)
    tokenizer = Tokenizer.from_file(str(llama_bundle / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])

    def engine(second: str) -> Engine:
        task = msgspec.structs.replace(bundle.manifest.task, fields=["text", second])
        changed = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, tasks=[task]))
        encoders = TaskEncoders(of_task=[TextEncoder(tokenizer, fields=task.fields)])
        return Engine(changed, OpenState(encoders, graph))

    pairs = [(text, "dull") for text in TEXTS[:9]]
    assert close_to(list(engine("text_b").predict_iter(iter(pairs))), engine("text_b").predict(pairs))
    rows = [(text, ["dull", "bright and fast"]) for text in TEXTS[:9]]
    assert close_to(list(engine("choice").choose_iter(iter(rows))), engine("choice").choose(rows))


def test_what_is_wrong_with_the_stream(engine: Engine) -> None:
    with pytest.raises(DataError, match="got one string, need a list"):
        engine.predict_iter("slow")
    with pytest.raises(DataError, match="top_k: got 0"):
        engine.predict_iter(["slow"], top_k=0)
    with pytest.raises(TypeError, match="not iterable"):
        engine.predict_iter(7)  # type: ignore[arg-type]
    broken = itertools.chain(itertools.repeat("slow", CHUNK_TEXTS + 3), [7])
    answers = engine.predict_iter(broken)  # type: ignore[arg-type]
    assert len(list(itertools.islice(answers, CHUNK_TEXTS))) == CHUNK_TEXTS
    with pytest.raises(DataError, match=f"text {CHUNK_TEXTS + 3}: got int, need a string"):
        next(answers)


PEAK = """
import re, sys
from pathlib import Path
from ptexport.runtime import Engine
engine = Engine.open(sys.argv[1], threads=1)
n = int(sys.argv[2])
texts = (f"story {i} was {'very ' * (i % 9)}slow" for i in range(n))
answers = engine.predict_iter(texts) if sys.argv[3] == "iter" else engine.predict(list(texts))
assert sum(1 for _ in answers) == n
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(bundle: Path, n: int, how: str) -> int:
    command = [sys.executable, "-c", PEAK, str(bundle), str(n), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def test_memory_is_constant_and_a_control_that_grows(bert_bundle: Path) -> None:
    base = peak_bytes(bert_bundle, 2 * CHUNK_TEXTS, "iter")
    assert peak_bytes(bert_bundle, 10 * CHUNK_TEXTS, "iter") - base < 3e6
    assert peak_bytes(bert_bundle, 10 * CHUNK_TEXTS, "list") - base > 15e6


def test_awaited_while_the_loop_goes_on(engine: Engine) -> None:
    async def ask() -> tuple[list[list[Prediction]], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        clock = asyncio.create_task(tick())
        answers = await asyncio.gather(engine.predict_async(TEXTS * 4), engine.predict_async(TEXTS[:3]))
        clock.cancel()
        return answers, ticks

    (many, few), ticks = asyncio.run(ask())
    assert close_to(many, engine.predict(TEXTS * 4))
    assert close_to(few, engine.predict(TEXTS[:3]))
    assert ticks > 3
    assert asyncio.run(engine.predict_async([])) == []
    with pytest.raises(DataError, match=f"text {SLICE_TEXTS + 1}: got int"):
        asyncio.run(engine.predict_async([*TEXTS[: SLICE_TEXTS + 1], 7]))  # type: ignore[list-item]


def test_in_turns_and_cancelled(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small question waits for one batch of a large one, which is bounded; what is cancelled is not computed."""
    engine = Engine.open(llama_bundle)
    graph, shapes = engine._state.get().graph, []
    run = graph.run

    def slowly(ids: dict[str, np.ndarray]) -> np.ndarray:
        shapes.append(ids["input_ids"].shape)
        time.sleep(0.05)
        return run(ids)

    monkeypatch.setattr(graph, "run", slowly)
    long = "slow bright it " * 30

    async def ask() -> None:
        large = asyncio.create_task(engine.predict_async([long] * SLICE_TEXTS * 5))
        await asyncio.sleep(0.02)
        await engine.predict_async(["bright"])
        assert not large.done()
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        await engine.predict_async(["dull"])

    asyncio.run(ask())
    (rows, tokens), small = shapes[:2]
    assert tokens > 32, "fewer rows than a batch has at most"
    assert CPU_BATCH_TOKENS - tokens < rows * tokens <= CPU_BATCH_TOKENS
    assert small[0] == shapes[-1][0] == 1
    assert len(shapes) < 6


def test_twenty_four_threads_answer_as_one(engine: Engine) -> None:
    """200 calls each, all at once; every text is asked alone, so that its answer is the same to the last bit."""
    need = {text: engine.predict([text]) for text in TEXTS}
    wrong: list[str] = []
    barrier = threading.Barrier(24)

    def ask(start: int) -> None:
        barrier.wait()
        for i in range(200):
            text = TEXTS[(start * 7 + i) % len(TEXTS)]
            if engine.predict([text]) != need[text]:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len({answer[0].probabilities["positive"] for answer in need.values()}) > 10, "answers differ between texts"
