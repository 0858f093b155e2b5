"""What text-embeddings-inference offers for classifiers at its defaults, asked of this server in its own words.

Follows its options, https://huggingface.co/docs/text-embeddings-inference/cli_arguments: 512 requests at once, 32 texts
a request, `raw_scores`, `truncate`, the headers of each answer, metrics.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conformance.started import TEXTS, Server, check_refused

from ptexport.runtime import Engine

TIMES = ("x-queue-time", "x-tokenization-time", "x-inference-time")
LONG = "the film was bright " * 200


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection


def test_raw_scores_are_the_logits(client: httpx.Client, engine: Engine) -> None:
    answers = client.post("/predict", json={"texts": TEXTS, "raw_scores": True}).json()["predictions"]
    for answer, row in zip(answers, engine.logits(TEXTS), strict=True):
        assert answer["logits"] == pytest.approx(dict(zip(engine.labels, row.tolist(), strict=True)), abs=1e-5)
    plain = client.post("/predict", json={"texts": TEXTS}).json()["predictions"]
    assert all("logits" not in answer for answer in plain)


def test_a_long_text_is_cut_off_and_said_so_or_refused(client: httpx.Client, engine: Engine) -> None:
    (answer,) = client.post("/predict", json={"texts": [LONG], "truncate": True}).json()["predictions"]
    (expected,) = engine.predict([LONG])
    assert expected.truncated
    assert (answer["label"], answer["truncated"]) == (expected.label, True)
    check_refused(client.post("/predict", json={"texts": [LONG], "truncate": False}), 400, 413, 422)
    (short,) = client.post("/predict", json={"texts": ["slow"], "truncate": False}).json()["predictions"]
    assert short["truncated"] is False


def test_only_the_top_labels_come_if_asked_for(client: httpx.Client, engine: Engine) -> None:
    answers = client.post("/predict", json={"texts": TEXTS, "top_k": 1}).json()["predictions"]
    for answer, prediction in zip(answers, engine.predict(TEXTS, top_k=1), strict=True):
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/reviews/infer"])
def test_each_answer_says_how_long_it_took(client: httpx.Client, path: str) -> None:
    tensor = {"name": "text", "shape": [4], "datatype": "BYTES", "data": TEXTS}
    headers = client.post(path, json={"texts": TEXTS} if path == "/predict" else {"inputs": [tensor]}).headers
    parts = [float(headers[name]) for name in TIMES]
    assert all(part >= 0 for part in parts)
    assert float(headers["x-inference-time"]) > 0
    assert 0 < float(headers["x-total-time"]) < 30_000


@pytest.mark.parametrize("count", [1, 32, 33, 512])
def test_more_than_thirty_two_texts_a_request(client: httpx.Client, engine: Engine, count: int) -> None:
    texts = [f"{TEXTS[n % 4]} {n}" for n in range(count)]
    answers = client.post("/predict", json={"texts": texts}).json()["predictions"]
    assert [answer["label"] for answer in answers] == [prediction.label for prediction in engine.predict(texts)]


def test_five_hundred_and_twelve_requests_at_once(server: Server, engine: Engine) -> None:
    """Each is answered, and with its own text's answer."""
    texts = [f"{TEXTS[n % 4]} {n}" for n in range(512)]
    expected = [prediction.label for prediction in engine.predict(texts)]
    limits = httpx.Limits(max_connections=512)
    with server.client(limits=limits) as connection, ThreadPoolExecutor(512) as pool:
        responses = list(pool.map(lambda text: connection.post("/predict", json={"texts": [text]}), texts))
    assert {response.status_code for response in responses} == {200}
    assert [response.json()["predictions"][0]["label"] for response in responses] == expected


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    def total(text: str) -> float:
        lines = (line for line in text.splitlines() if line.startswith("nv_inference_request_success"))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = total(client.get("/metrics").text)
    for _ in range(3):
        client.post("/predict", json={"texts": TEXTS})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert total(response.text) == before + 3
    assert all(text not in response.text for text in TEXTS)
