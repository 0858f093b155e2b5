"""A bundle of several tasks behind HTTP: each task is a model, and `/predict` takes a task or all of them."""

from pathlib import Path
from typing import Any

import pytest
from servers import app_of
from starlette.testclient import TestClient

from ptexport.runtime import Engine

TEXTS = ["the film was bright", "", "a slow story"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(Path(__file__).parents[2] / "golden" / "format-1" / "both")


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    return TestClient(app_of(engine))


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
    assert client.get(f"/v2/models/{name}").json()["parameters"]["labels"] == ["positive", "negative"]
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
    assert response.status_code == 404
    assert response.json()["error"].startswith("task: got an unknown name, need 'tone' or 'mood'")
    assert "private" not in response.json()["error"]
    pairs = client.post("/predict", json={"texts": [["a", "b"]], "task": "all"})
    assert (pairs.status_code, "texts[0]: got a list of 2 strings" in pairs.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/ready"), ("POST", "/infer")],
)
@pytest.mark.parametrize("name", ["other", "both"])
def test_a_model_of_another_name_is_not_found(method: str, path: str, name: str, client: TestClient) -> None:
    body = infer_body() if method == "POST" else None
    response = client.request(method, f"/v2/models/{name}{path}", json=body)
    assert response.status_code == 404
    assert response.json() == {"error": "model: got an unknown name, need 'tone' or 'mood'; correct it"}


def infer_body(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": TEXTS}], **more}


def test_all_is_a_model_of_its_own(client: TestClient, engine: Engine) -> None:
    assert client.get("/v2/models").json() == {"models": ["tone", "mood", "all"]}
    assert [entry["name"] for entry in client.post("/v2/repository/index").json()] == ["tone", "mood"]
    metadata = client.get("/v2/models/all").json()
    assert metadata["parameters"] == {"tasks": ["tone", "mood"]}
    names = ["tone.label", "tone.probabilities", "mood.label", "mood.probabilities"]
    assert [output["name"] for output in metadata["outputs"]] == names
    assert client.get("/v2/models/all/ready").json() == {"name": "all", "ready": True}
    need = engine.predict_all(TEXTS)
    outputs = client.post("/v2/models/all/infer", json=infer_body()).json()["outputs"]
    assert [output["name"] for output in outputs] == names
    for number, task in ((0, "tone"), (2, "mood")):
        labels, scores = outputs[number], outputs[number + 1]
        assert labels["data"] == [by_task[task].label for by_task in need]
        flat = [value for by_task in need for value in by_task[task].probabilities.values()]
        assert scores["data"] == pytest.approx(flat, abs=1e-5)
    ranked = client.post("/v2/models/all/infer", json=infer_body(parameters={"top_k": 1})).json()["outputs"]
    assert [output["name"] for output in ranked[:3]] == ["tone.label", "tone.labels", "tone.probabilities"]
    assert ranked[0]["data"] == ranked[1]["data"]
    assert outputs[1]["data"] != pytest.approx(outputs[3]["data"], abs=1e-3), "the control: the tasks differ"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"parameters": {"raw_scores": True}}, "task 'all': got raw_scores or truncate, need neither"),
        ({"parameters": {"truncate": False}}, "task 'all': got raw_scores or truncate, need neither"),
        ({"outputs": [{"name": "label"}]}, "outputs: got an unknown or repeated name, need some of ['tone.label'"),
        ({"outputs": [{"name": "tone.logits"}]}, "outputs: got an unknown or repeated name"),
        (
            {"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [1]}]},
            "inputs: got ids, need texts for 'all'",
        ),
    ],
)
def test_what_all_does_not_answer(more: dict[str, Any], message: str, client: TestClient) -> None:
    response = client.post("/v2/models/all/infer", json=infer_body() | more)
    assert (response.status_code, response.json()["error"][: len(message)]) == (400, message)


def test_a_parameter_names_the_task_of_all(client: TestClient, engine: Engine) -> None:
    body = infer_body(parameters={"task": "mood"})
    answer = client.post("/v2/models/all/infer", json=body).json()
    assert answer["model_name"] == "mood"
    assert answer["outputs"][0]["data"] == [p.label for p in engine.predict(TEXTS, task="mood")]
    assert client.post("/v2/models/mood/infer", json=body).status_code == 200
    refused = client.post("/v2/models/tone/infer", json=body)
    assert (refused.status_code, refused.json()["error"][:22]) == (400, "parameters.task: got a")
