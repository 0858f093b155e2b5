"""A bundle of several tasks behind HTTP: each task is a model, and `/predict` takes a task or all of them."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ptexport.runtime import Engine
from ptexport.runtime.server.app import make_app

TEXTS = ["the film was bright", "", "a slow story"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(Path(__file__).parents[2] / "golden" / "format-1" / "both")


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    return TestClient(make_app(engine))


@pytest.mark.parametrize("name", ["tone", "mood"])
def test_predict_and_infer_take_a_task(name: str, client: TestClient, engine: Engine) -> None:
    need = engine.predict(TEXTS, task=name)
    got = client.post("/predict", json={"texts": TEXTS, "task": name}).json()["predictions"]
    assert [p["label"] for p in got] == [p.label for p in need]
    assert [p["probabilities"] for p in got] == [pytest.approx(p.probabilities, abs=1e-5) for p in need]
    inputs = [{"name": "text", "shape": [3], "datatype": "BYTES", "data": TEXTS}]
    infer = client.post(f"/v2/models/{name}/infer", json={"inputs": inputs}).json()
    assert infer["model_name"] == name
    assert infer["outputs"][0]["data"] == [p.label for p in need]
    flat = [value for p in need for value in p.probabilities.values()]
    assert infer["outputs"][1]["data"] == pytest.approx(flat, abs=1e-5)
    assert client.get(f"/v2/models/{name}").json()["parameters"] == {"labels": ["positive", "negative"]}
    assert client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}


def test_predict_takes_all_tasks(client: TestClient, engine: Engine) -> None:
    got = client.post("/predict", json={"texts": TEXTS, "task": "all"}).json()["predictions"]
    for by_task, need in zip(got, engine.predict_all(TEXTS), strict=True):
        assert list(by_task) == ["tone", "mood"]
        for name, prediction in need.items():
            assert by_task[name]["label"] == prediction.label
            assert by_task[name]["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
    assert client.post("/predict", json={"texts": [], "task": "all"}).json() == {"predictions": []}


def test_predict_without_or_with_another_task_is_refused(client: TestClient) -> None:
    response = client.post("/predict", json={"texts": TEXTS})
    assert response.status_code == 400
    assert response.json()["error"].startswith("task: got none, need one of tone, mood")
    response = client.post("/predict", json={"texts": TEXTS, "task": "private"})
    assert response.status_code == 400
    assert response.json()["error"].startswith("task: got another name, need 'tone' or 'mood'")
    assert "private" not in response.json()["error"]
    pairs = client.post("/predict", json={"texts": [["a", "b"]], "task": "all"})
    assert (pairs.status_code, "texts[0]: got a list of 2 strings" in pairs.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/ready"), ("POST", "/infer")],
)
@pytest.mark.parametrize("name", ["other", "all", "both"])
def test_a_model_of_another_name_is_not_found(method: str, path: str, name: str, client: TestClient) -> None:
    response = client.request(method, f"/v2/models/{name}{path}")
    assert response.status_code == 404
    assert response.json() == {"error": "model: got another name, need 'tone' or 'mood'; change the path"}
