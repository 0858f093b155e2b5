"""The application alone, without a process: every route, headers, deadlines, and whatever it is fed."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Kept, app_of
from starlette.testclient import TestClient
from tokenizers import Tokenizer, processors

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, Bundle
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.ort.graph import Graph

INFER = "/v2/models/reviews/infer"
TEXTS = ["the film was bright", "", "Владивосток\0"]


@pytest.fixture(scope="module")
def engine(llama_bundle: Path) -> Engine:
    return Engine.open(llama_bundle)


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def client(engine: Engine, kept: Kept) -> Iterator[TestClient]:
    with TestClient(app_of(engine, observer=kept), raise_server_exceptions=False) as connection:
        yield connection


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["slow", ""], **changes}


def test_predict_answers_as_the_engine_does(client: TestClient, engine: Engine) -> None:
    answers = client.post("/predict", json={"texts": TEXTS}).json()["predictions"]
    for answer, prediction in zip(answers, engine.predict(TEXTS), strict=True):
        assert answer.keys() == {"label", "probabilities", "truncated"}
        assert answer["label"] == prediction.label
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_predict_with_options(client: TestClient, engine: Engine) -> None:
    body = {"texts": ["slow " * 100], "top_k": 1, "raw_scores": True}
    (answer,) = client.post("/predict", json=body).json()["predictions"]
    (need,) = engine.predict(body["texts"])
    logits = engine.logits(body["texts"])[0]
    assert (answer["label"], list(answer["probabilities"]), answer["truncated"]) == (need.label, [need.label], True)
    assert answer["logits"] == {need.label: pytest.approx(float(logits.max()), abs=1e-5)}
    refused = client.post("/predict", json=body | {"truncate": False})
    assert (refused.status_code, refused.json()["error"][:25]) == (422, "text 0: got more tokens t")


def test_infer_answers_as_the_engine_does(client: TestClient, engine: Engine) -> None:
    expected = engine.predict(TEXTS)
    answer = client.post(INFER, json={"id": "7", "inputs": [tensor(shape=[3, 1], data=TEXTS)]}).json()
    version = engine.manifest.digest[:12]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("reviews", version, "7")
    labels, probabilities = answer["outputs"]
    assert labels == {"name": "label", "datatype": "BYTES", "shape": [3], "data": [p.label for p in expected]}
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [3, 2])
    flat = [value for p in expected for value in p.probabilities.values()]
    assert probabilities["data"] == pytest.approx(flat, abs=1e-6)
    answer = client.post(INFER, json={"inputs": [tensor()], "outputs": [{"name": "label"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert "id" not in answer
    same = client.post(f"/v2/models/reviews/versions/{version}/infer", json={"inputs": [tensor()]}).json()
    assert same["outputs"][0]["data"] == answer["outputs"][0]["data"]


def test_no_texts_get_no_answers(client: TestClient) -> None:
    assert client.post("/predict", json={"texts": []}).json() == {"predictions": []}
    outputs = client.post(INFER, json={"inputs": [tensor(shape=[0], data=[])]}).json()["outputs"]
    assert [(output["shape"], output["data"]) for output in outputs] == [([0], []), ([0, 2], [])]


def test_health_and_metadata(client: TestClient, engine: Engine) -> None:
    version = engine.manifest.digest[:12]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/reviews/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json().keys() == {"name", "version", "extensions"}
    assert client.get("/v2/models").json() == {"models": ["reviews"]}
    assert client.post("/v2/repository/index").json() == [
        {"name": "reviews", "version": version, "state": "READY", "reason": ""}
    ]
    model = client.get("/v2/models/reviews").json()
    assert model == client.get(f"/v2/models/reviews/versions/{version}").json()
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]] == ["label", "probabilities"]
    card = model["parameters"]
    assert (card["labels"], card["max_length"]) == (["positive", "negative"], engine.manifest.task.max_length)
    assert card["golden_max_abs_diff"] < 1e-3
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0"


def test_a_server_that_stops_is_not_ready(engine: Engine) -> None:
    stopping = TestClient(app_of(engine, is_ready=lambda: False))
    ready = stopping.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert stopping.get("/v2/models/reviews/ready").json() == {"name": "reviews", "ready": False}
    assert stopping.get("/v2/health/live").status_code == 200
    assert stopping.post("/predict", json={"texts": ["slow"]}).status_code == 200, "what has come is answered"


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "path: unknown; use "),
        ("POST", "/predict/", 404, "path: unknown; use "),
        ("GET", "/predict", 405, "method: got another one, need POST for this path"),
        ("POST", "/v2/health/live", 405, "method: got another one, need GET"),
        ("GET", "/v2/models/other", 404, "model: got an unknown name, need 'reviews'"),
        ("GET", "/v2/models/other/ready", 404, "model: got an unknown name, need 'reviews'"),
        ("POST", "/v2/models/other/infer", 404, "model: got an unknown name, need 'reviews'"),
        ("GET", "/v2/models/reviews/versions/7", 404, "version: got one that is not served, need '"),
        ("GET", "/v2/models/all", 404, "model: got 'all', need several tasks"),
        ("POST", "/v2/models/all/infer", 404, "model: got 'all', need several tasks"),
    ],
)
def test_unknown_places_get_a_sentence(client: TestClient, method: str, path: str, status: int, message: str) -> None:
    body = {"inputs": [tensor()]} if method == "POST" else None
    response = client.request(method, path, json=body)
    assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert response.json()["error"].startswith(message)
    assert ("allow" in response.headers) == (status == 405)


def test_headers_say_where_the_time_went(client: TestClient, kept: Kept) -> None:
    response = client.post("/predict", json={"texts": TEXTS}, headers={"x-request-id": "seven"})
    parts = ("x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time")
    queue, tokenise, compute, total = (float(response.headers[name]) for name in parts)
    assert 0 < compute <= queue + tokenise + compute <= total
    assert response.headers["x-request-id"] == "seven"
    record = kept.records[-1]
    assert (record.model, record.texts, record.code, record.reason) == ("reviews", 3, 200, None)
    assert (record.request_id, record.tokens > 3) == ("seven", True)
    other = client.post("/predict", json={"texts": [7]}, headers={"x-request-id": "has a space"})
    assert len(other.headers["x-request-id"]) == 32, "one that cannot stand in a log is replaced"
    assert (other.status_code, kept.records[-1].reason, kept.records[-1].timing) == (400, "OTHER", None)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 10, "\u0661"])
def test_a_deadline_header_is_whole_milliseconds(value: str, client: TestClient) -> None:
    header = {"x-request-timeout-ms": value.encode()}
    response = client.post("/predict", json={"texts": ["slow"]}, headers=header)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["error"][:28]) == (400, "header x-request-timeout-ms:")


class Slow:
    """An engine whose batches take a while, and the sizes of those that ran."""

    def __init__(self, bundle: Path, seconds: float, **batching: Any) -> None:
        self.engine = Engine.open(bundle, batcher=Batcher(**batching))
        graph = self.engine._state.get().graph
        run, self.rows = graph.run, list[int]()

        def slowly(ids: Any) -> Any:
            self.rows.append(len(ids["input_ids"]))
            time.sleep(seconds)
            return run(ids)

        graph.run = slowly  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_request_that_takes_too_long_ends_at_its_deadline(how: str, llama_bundle: Path) -> None:
    slow, kept = Slow(llama_bundle, 0.1), Kept()
    with TestClient(app_of(slow.engine, observer=kept)) as client:
        body: dict[str, Any] = {"inputs": [tensor(shape=[640], data=["slow"] * 640)]}
        headers = {"x-request-timeout-ms": "150"} if how == "header" else {}
        if how == "parameter":
            body["parameters"] = {"timeout": 150_000}
        started = time.perf_counter()
        response = client.post(INFER, json=body, headers=headers)
        took = time.perf_counter() - started
        assert (response.status_code, response.json()["error"][:13]) == (504, "timeout: got ")
        assert 0.1 < took < 1
        time.sleep(0.3)
        assert len(slow.rows) < 6, "the rest is dropped"
        assert kept.records[-1].reason == "CANCELED"
        headers = {"x-request-timeout-ms": "60000"}
        assert client.post(INFER, json={"inputs": [tensor()]}, headers=headers).status_code == 200, "the control"


def test_a_deadline_that_has_passed_is_not_a_busy_server(client: TestClient) -> None:
    """Nothing waits, so sending it again with the same deadline does not help: no 429."""
    body = {"inputs": [tensor()], "parameters": {"timeout": 1}}
    assert client.post(INFER, json=body).status_code == 504


def test_a_failure_of_ours_is_a_sentence_too(llama_bundle: Path) -> None:
    bundle, graph = Bundle.open(llama_bundle), Graph.open(llama_bundle / MODEL)
    graph._pool = None  # type: ignore[assignment]
    engine, kept = Engine(bundle, OpenState(TaskEncoders.open(bundle), graph)), Kept()
    client = TestClient(app_of(engine, observer=kept), raise_server_exceptions=False)
    response = client.post("/predict", json={"texts": ["slow"]})
    assert (response.status_code, response.json()) == (
        500,
        {"error": "server: failed with an internal error; see its log"},
    )
    assert kept.records[-1].reason == "BACKEND"


def pair_engine(bundle_folder: Path) -> Engine:
    """The bundle's graph behind a template of two texts."""
    bundle = Bundle.open(bundle_folder)
    task = msgspec.structs.replace(bundle.manifest.task, fields=["text", "text_b"])
    pairs = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, tasks=[task]))
    tokenizer = Tokenizer.from_file(str(bundle_folder / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    encoders = TaskEncoders(of_task=[TextEncoder(tokenizer, fields=task.fields)])
    return Engine(pairs, OpenState(encoders, Graph.open(bundle_folder / MODEL)))


def test_pairs(llama_bundle: Path) -> None:
    engine = pair_engine(llama_bundle)
    client = TestClient(app_of(engine))
    expected = engine.predict([("the film", "was bright")])[0].probabilities
    (answer,) = client.post("/predict", json={"texts": [["the film", "was bright"]]}).json()["predictions"]
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-6)
    columns = [tensor(name="text_b", shape=[1], data=["was bright"]), tensor(shape=[1], data=["the film"])]
    answer = client.post(INFER, json={"inputs": columns}).json()["outputs"][1]
    assert answer["data"] == pytest.approx(list(expected.values()), abs=1e-6)
    swapped = engine.predict([("was bright", "the film")])[0].probabilities
    assert not np.allclose(list(swapped.values()), answer["data"], atol=1e-6), "the control: the order matters"
    assert "need a list of 2 strings" in client.post("/predict", json={"texts": ["the film"]}).json()["error"]
    assert [i["name"] for i in client.get("/v2/models/reviews").json()["inputs"]] == ["text", "text_b"]


@settings(max_examples=100, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ).map(lambda value: json.dumps({"texts": value}).encode())
    | st.fixed_dictionaries(
        {
            "name": st.sampled_from(["text", "text_b", "", "input_ids"]),
            "shape": st.lists(st.integers(-1, 3), max_size=3),
            "datatype": st.sampled_from(["BYTES", "FP32", "INT64"]),
            "data": st.lists(st.text() | st.integers(-1, 2**70) | st.lists(st.text(), max_size=2), max_size=3),
        }
    ).map(lambda value: json.dumps({"inputs": [value]}).encode()),
    path=st.sampled_from(["/predict", INFER]),
    length=st.none() | st.text("0123456789-x", max_size=4),
)
def test_no_body_makes_a_server_error(client: TestClient, body: bytes, path: str, length: str | None) -> None:
    headers = {} if length is None else {"inference-header-content-length": length}
    assert client.post(path, content=body, headers=headers).status_code in (200, 400)
