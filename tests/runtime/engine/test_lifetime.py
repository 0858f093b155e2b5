"""Engines are closed, while others ask too, and opened again; what they held is free, and a control that leaks."""

import copy
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from ptexport.runtime import Engine
from ptexport.runtime.errors import EngineError

CYCLES = Path(__file__).with_name("cycles.py")
TEXTS = ["the film was bright", "", "a dull story"]
FLAT_BYTES = 2 << 20
"""Two engines that leak take more."""
BPE_BYTES = 4096
"""tokenizers 0.23 keeps 1 to 2 kB of each BPE tokenizer that was used; of WordPiece's nothing."""


def test_what_is_closed_says_so_and_opens_again(llama_bundle: Path) -> None:
    with Engine.open(llama_bundle) as engine:
        need = engine.logits(TEXTS)
    feed = iter(["slow"])
    for ask in (
        lambda: engine.predict(TEXTS),
        lambda: engine.logits(TEXTS),
        lambda: next(engine.predict_iter(feed)),
        lambda: engine.info,
        engine.__enter__,
    ):
        with pytest.raises(EngineError, match="engine: is closed; open the bundle again"):
            ask()
    engine.close()
    assert engine.labels == ["positive", "negative"], "what the bundle says of itself stays"
    np.testing.assert_array_equal(Engine.open(llama_bundle).logits(TEXTS), need)


def test_the_last_to_close_frees_the_session(llama_bundle: Path) -> None:
    first, second = Engine.open(llama_bundle, threads=3), Engine.open(llama_bundle, threads=3)
    session = weakref.ref(first._state.get().graph.session)
    first.close()
    assert session() is not None
    assert len(second.predict(TEXTS)) == 3
    second.close()
    assert session() is None, "at once, with the engine still at hand"


def test_closed_while_others_ask(llama_bundle: Path) -> None:
    """Every call is answered, or says that the engine is closed."""
    engine = Engine.open(llama_bundle)
    need, started, ends = engine.predict(TEXTS), threading.Barrier(9), []

    def ask() -> None:
        started.wait()
        try:
            while True:
                assert engine.predict(TEXTS) == need
        except EngineError as e:
            ends.append(str(e))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    engine.close()
    for thread in threads:
        thread.join(60)
    assert ends == ["engine: is closed; open the bundle again"] * 8


def test_a_call_that_has_begun_is_answered(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle)
    need = engine.predict(TEXTS * 50)
    graph = engine._state.get().graph
    run, batches = graph.run, []

    def run_and_close(ids: dict[str, np.ndarray]) -> np.ndarray:
        batches.append(len(ids["input_ids"]))
        engine.close()
        return run(ids)

    graph.run = run_and_close  # type: ignore[method-assign, assignment]
    assert engine.predict(TEXTS * 50) == need
    assert len(batches) > 1


def test_an_engine_is_not_sent_anywhere(llama_bundle: Path) -> None:
    engine = Engine.open(llama_bundle)
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(EngineError, match="cannot be sent to another process; send the bundle's path and open it"):
            send(engine)


def growth_bytes(bundle: Path, cycles: int, *more: str) -> int:
    command = [sys.executable, str(CYCLES), str(bundle), str(cycles), *more]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200).stdout)


def test_opened_and_closed_again_and_again(bert_bundle: Path) -> None:
    assert growth_bytes(bert_bundle, 40) < FLAT_BYTES


def test_control_what_leaks_is_seen(bert_bundle: Path) -> None:
    assert growth_bytes(bert_bundle, 5, "leak") > 2 * FLAT_BYTES


@pytest.mark.soak
@pytest.mark.parametrize(("bundle", "kept_bytes"), [("bert_bundle", 0), ("llama_bundle", BPE_BYTES)])
def test_opened_and_closed_two_thousand_times(bundle: str, kept_bytes: int, request: pytest.FixtureRequest) -> None:
    grown = growth_bytes(request.getfixturevalue(bundle), 2000)
    print(f"2,000 cycles of {bundle}: {grown / 1e6:.2f} MB more in memory")
    assert grown < FLAT_BYTES + 2000 * kept_bytes
