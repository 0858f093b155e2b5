"""A request through the service: which model answers, within which time, and what its record says."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import service_of

from ptexport.runtime import Engine, Prediction
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.errors import (
    BusyError,
    ClientGoneError,
    DataError,
    DeadlineError,
    EngineError,
    LargeRequestError,
    RequestError,
    TooLongError,
    UnknownModelError,
)
from ptexport.runtime.serving import service as service_module
from ptexport.runtime.serving.call import Call, failure_of
from ptexport.runtime.serving.questions import Options
from ptexport.runtime.serving.service import Service
from ptexport.runtime.serving.tensors import InferRequest, InferResponse, OutputRequest, Tensor

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
TEXTS = ["the film was bright", "", "slow"]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    batcher = Batcher()
    with (
        Engine.open(GOLDEN / "reviews", batcher=batcher) as reviews,
        Engine.open(GOLDEN / "both", batcher=batcher) as both,
    ):
        yield reviews, both


@pytest.fixture(scope="module")
def service(engines: tuple[Engine, Engine]) -> Service:
    return service_of(*engines)


def call(**more: Any) -> Call:
    return Call(protocol="http", request_id="7", **more)


def column(texts: list[str], **more: Any) -> InferRequest:
    return InferRequest(inputs=[Tensor("text", "BYTES", [len(texts)], texts)], **more)


def ids(rows: list[list[int]], mask: list[list[int]] | None = None) -> InferRequest:
    shape = [len(rows), len(rows[0])]
    inputs = [Tensor("input_ids", "INT64", shape, [one for row in rows for one in row])]
    if mask is not None:
        inputs.append(Tensor("attention_mask", "INT64", shape, [one for row in mask for one in row]))
    return InferRequest(inputs=inputs, outputs=[OutputRequest(name="logits")])


def infer(service: Service, name: str, request: InferRequest, version: str | None = None, **more: Any) -> InferResponse:
    return asyncio.run(service.infer(name, version, request, call(**more)))


def predict(service: Service, texts: Any, task: str | None, options: Options | None = None, **more: Any) -> Any:
    return asyncio.run(service.predict(texts, task, options or Options(), call(**more)))


def shown(predictions: list[Prediction]) -> list[Any]:
    return [(p.label, pytest.approx(p.probabilities, abs=1e-5)) for p in predictions]


def test_each_model_answers_for_itself(service: Service, engines: tuple[Engine, Engine]) -> None:
    for engine in engines:
        for name in engine.tasks:
            need = engine.predict(TEXTS, task=name)
            assert [(p.label, p.probabilities) for p in predict(service, TEXTS, name)] == shown(need)
            response = infer(service, name, column(TEXTS, id="8"), engine.manifest.digest[:12])
            assert (response.model, response.version, response.id) == (name, engine.manifest.digest[:12], "8")
            assert response.outputs[0].data == [p.label for p in need]
    tone, mood = (predict(service, TEXTS, name) for name in ("tone", "mood"))
    assert [(p.label, p.probabilities) for p in tone] != shown(mood), "the control: the tasks differ"


def test_all_asks_every_engine_once(service: Service, engines: tuple[Engine, Engine]) -> None:
    asked = call()
    got = asyncio.run(service.predict(TEXTS, "all", Options(), asked))
    for engine in engines:
        for name in engine.tasks:
            need = engine.predict(TEXTS, task=name)
            assert [(p[name].label, p[name].probabilities) for p in got] == shown(need)  # type: ignore[index]
    assert list(got[0]) == ["reviews", "tone", "mood"]  # type: ignore[call-overload]
    record = asked.record(200, None)
    assert (record.model, record.texts, record.tokens > 6) == ("all", 3, True)
    assert record.timing is not None
    assert service.names() == ["reviews", "tone", "mood", "all"]


def test_ids_with_padding_anywhere_are_predicted_as_without(service: Service, engines: tuple[Engine, Engine]) -> None:
    engine = engines[0]
    (encoding,) = engine.task().encode(engine._state.get(), ["the film was slow"], [0])
    whole, n = list(encoding.ids), len(encoding.ids)
    need = engine.logits(["the film was slow"])[0].tolist()
    right = [*whole, 0, 0], [*[1] * n, 0, 0]
    left = [0, 0, *whole], [0, 0, *[1] * n]
    holes = [whole[0], 0, *whole[1:], 0], [1, 0, *[1] * (n - 1), 0]
    for row, mask in (right, left, holes):
        (logits,) = infer(service, "reviews", ids([row], [mask])).outputs
        assert list(logits.data) == pytest.approx(need, abs=1e-5)
    (unmasked,) = infer(service, "reviews", ids([left[0]])).outputs
    assert list(unmasked.data) != pytest.approx(need, abs=1e-3), "the control: padding that is read as ids"


@pytest.mark.parametrize(("row", "message"), [([10**6], "row 0: got an id out"), ([-1], "row 0: got an id out")])
def test_ids_out_of_range(row: list[int], message: str, service: Service) -> None:
    with pytest.raises(DataError, match=message):
        infer(service, "reviews", ids([row]))
    with pytest.raises(DataError, match="row 1: got 0 ids, need 1 to"):
        infer(service, "reviews", ids([[1], [1]], [[1], [0]]))
    empty = InferRequest(inputs=[Tensor("input_ids", "INT64", [3, 0], [])])
    with pytest.raises(DataError, match="row 0: got 0 ids, need 1 to"):
        infer(service, "reviews", empty)


def test_which_models_there_are(service: Service) -> None:
    with pytest.raises(UnknownModelError, match=r"^model: got an unknown name, need 'reviews' or 'tone' or 'mood'"):
        infer(service, "private", column(TEXTS))
    with pytest.raises(UnknownModelError, match=r"^version: got one that is not served, need"):
        infer(service, "tone", column(TEXTS), "1")
    with pytest.raises(UnknownModelError, match=r"^model: got an unknown name"):
        infer(service, "all", column(TEXTS), "1")
    with pytest.raises(RequestError, match=r"^task: got none, need one of reviews, tone, mood; name it"):
        predict(service, TEXTS, None)
    with pytest.raises(RequestError, match=r"^parameters.task: got another task than the model's"):
        infer(service, "tone", column(TEXTS, parameters={"task": "mood"}))
    assert infer(service, "all", column(TEXTS, parameters={"task": "mood"})).model == "mood"
    with pytest.raises(UnknownModelError):
        infer(service, "all", column(TEXTS, parameters={"task": "private"}))


def test_a_request_learns_what_it_was(service: Service, engines: tuple[Engine, Engine]) -> None:
    asked = call(trace="f" * 32)
    asyncio.run(service.predict(TEXTS, "reviews", Options(), asked))
    record = asked.record(200, None)
    assert (record.model, record.version) == ("reviews", engines[0].manifest.digest[:12])
    assert (record.protocol, record.request_id, record.trace, record.texts) == ("http", "7", "f" * 32, 3)
    assert record.timing is not None
    parts = record.timing.tokenise_s + record.timing.queue_s + record.timing.compute_s
    assert 0 < record.timing.compute_s < parts <= record.total_s
    unread = call()
    with pytest.raises(UnknownModelError):
        asyncio.run(service.predict(TEXTS, "private", Options(), unread))
    record = unread.record(404, "OTHER")
    assert (record.model, record.version, record.tokens, record.timing) == ("", "", 0, None), "no name of a caller's"


def test_the_earlier_deadline_counts(engines: tuple[Engine, Engine]) -> None:
    batcher, stop = Batcher(), threading.Event()
    with Engine.open(GOLDEN / "reviews", batcher=batcher) as engine:
        service = service_of(engine)
        batcher._engine.submit(stop.wait, 30)
        for own, transport in ((0.1, 20.0), (20.0, 0.1), (0.1, None), (None, 0.1)):
            with pytest.raises(DeadlineError, match=r"^timeout: got [\d.]+ ms for the answer, need more"):
                predict(service, TEXTS, None, Options(timeout_s=own), timeout_s=transport)
        for task in (None, "all"):
            with pytest.raises((DeadlineError, UnknownModelError)):
                predict(service, TEXTS, task, Options(timeout_s=1e-6))
        assert batcher.waiting == 0
        stop.set()
        assert len(predict(service, TEXTS, None, Options(timeout_s=20.0), timeout_s=20.0)) == 3


def test_all_is_admitted_once() -> None:
    """Not once for each engine: then it would never get in, though nothing waits."""
    batcher = Batcher(max_waiting=4)
    with (
        Engine.open(GOLDEN / "reviews", batcher=batcher) as reviews,
        Engine.open(GOLDEN / "both", batcher=batcher) as both,
    ):
        assert len(predict(service_of(reviews, both, batcher=batcher), ["slow"] * 4, "all")) == 4
        stop = threading.Event()
        batcher._engine.submit(stop.wait, 30)
        waiting = both.submit_all(["slow"] * 4)
        with pytest.raises(BusyError):
            predict(service_of(reviews, both, batcher=batcher), ["slow"], "all")
        stop.set()
        assert len(waiting.result(30).items) == 4


def test_one_engine_that_fails_leaves_the_others_nothing_to_do() -> None:
    """Of `all`, what the first engine was asked is dropped."""
    first, stop = Batcher(), threading.Event()
    with Engine.open(GOLDEN / "reviews", batcher=first) as reviews, Engine.open(GOLDEN / "both") as both:
        first._tokeniser.submit(stop.wait, 30)
        both.close()
        with pytest.raises(EngineError):
            predict(service_of(reviews, both), TEXTS, "all")
        assert first.waiting == 0
        stop.set()


@pytest.mark.parametrize(
    ("error", "code", "reason", "retry_after_s"),
    [
        (BusyError("busy", retry_after_s=2.5), 429, "REJECTED", 2.5),
        (ClientGoneError(), 499, "CANCELED", None),
        (DeadlineError("late"), 504, "CANCELED", None),
        (UnknownModelError("unknown"), 404, "OTHER", None),
        (LargeRequestError("large"), 413, "OTHER", None),
        (RequestError("odd"), 400, "OTHER", None),
        (TooLongError("long"), 422, "OTHER", None),
        (DataError("data"), 400, "OTHER", None),
        (asyncio.CancelledError(), 503, "CANCELED", None),
        (ValueError("private"), 500, "BACKEND", None),
    ],
)
def test_what_a_failed_request_ends_with(
    error: BaseException, code: int, reason: str, retry_after_s: float | None
) -> None:
    failure = failure_of(error)
    assert (failure.code, failure.reason, failure.retry_after_s) == (code, reason, retry_after_s)
    assert "private" not in failure.message


def test_an_answer_is_not_larger_than_a_server_can_write(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engines
    monkeypatch.setattr(service_module, "MAX_PROBABILITIES", 5)
    assert len(predict(service_of(engine), ["slow"] * 2, None)) == 2
    assert len(predict(service_of(engine), ["slow"] * 5, None, Options(top_k=1))) == 5
    with pytest.raises(LargeRequestError, match="got 3 texts with 2 probabilities each, need at most 5 together"):
        predict(service_of(engine), ["slow"] * 3, None)
