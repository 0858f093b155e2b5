"""The cases that MLServer tests its REST endpoints with, in our words; each is named after theirs.

https://github.com/SeldonIO/MLServer/blob/master/tests/rest/test_endpoints.py. What neither theirs nor Triton's can ask
of this server is in `NOT_OFFERED`, with why; it must be refused, and not by an error of the server.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from conformance.started import TEXTS, Server, check_refused, outputs_of, text_tensor

from ptexport.runtime import Engine


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection
        assert connection.get("/v2/models/reviews/ready").status_code == 200, "the model is gone after all this"


@pytest.fixture(scope="module")
def own_version(client: httpx.Client) -> str:
    (only,) = client.get("/v2/models/reviews").json()["versions"]
    return str(only)


def test_live(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").status_code == 200


def test_ready(client: httpx.Client) -> None:
    assert client.get("/v2/health/ready").status_code == 200


def test_model_ready(client: httpx.Client, own_version: str) -> None:
    assert client.get(f"/v2/models/reviews/versions/{own_version}/ready").status_code == 200


def test_metadata(client: httpx.Client) -> None:
    said = client.get("/v2").json()
    assert (said["name"], said["version"]) == ("ptexport", version("ptexport"))
    assert all(isinstance(extension, str) for extension in said["extensions"])


def test_openapi(client: httpx.Client) -> None:
    """Theirs is at /v2/docs/dataplane.json."""
    assert "openapi" in client.get("/openapi.json").json()


def test_model_metadata(client: httpx.Client) -> None:
    said = client.get("/v2/models/reviews").json()
    assert said["name"] == "reviews"
    assert said["platform"]
    assert {"name": "text", "datatype": "BYTES", "shape": [-1]} in said["inputs"]


@pytest.mark.parametrize("named", [True, False])
def test_infer(client: httpx.Client, engine: Engine, own_version: str, named: bool) -> None:
    path = f"/v2/models/reviews/versions/{own_version}/infer" if named else "/v2/models/reviews/infer"
    answer = client.post(path, json={"inputs": [text_tensor(*TEXTS)], "outputs": [{"name": "label"}]}).json()
    assert outputs_of(answer)["label"]["data"] == [prediction.label for prediction in engine.predict(TEXTS)]


def test_infer_error(client: httpx.Client) -> None:
    for path in ("/v2/models/my-model/versions/v0/infer", "/v2/models/reviews/versions/v0/infer"):
        check_refused(client.post(path, json={"inputs": [text_tensor("a")]}), 404)


@pytest.mark.parametrize("body", [None, {}, {"ready": True}])
def test_model_repository_index(client: httpx.Client, body: dict[str, Any] | None, own_version: str) -> None:
    models = client.post("/v2/repository/index", json=body) if body is not None else client.post("/v2/repository/index")
    assert [(m["name"], m["version"], m["state"]) for m in models.json()] == [("reviews", own_version, "READY")]


@pytest.mark.parametrize("datatype", ["INVALID", "bytes", "FP32", "", 7, None])
def test_infer_invalid_datatype_error(client: httpx.Client, datatype: object) -> None:
    body = {"inputs": [text_tensor("a", datatype=datatype)]}
    check_refused(client.post("/v2/models/reviews/infer", json=body), 400, 422)


SHARED_MEMORY = {"shared_memory_region": "x", "shared_memory_byte_size": 8}
NOT_OFFERED: dict[str, tuple[str, str, dict[str, Any] | None, str]] = {
    "MLServer test_openapi": ("GET", "/v2/docs", None, "the document is at /openapi.json; no page reads it"),
    "MLServer test_docs": ("GET", "/v2/docs/dataplane.json", None, "as above"),
    "MLServer test_model_openapi": ("GET", "/v2/models/reviews/docs/dataplane.json", None, "one document for all"),
    "MLServer test_generate": ("POST", "/v2/models/reviews/generate", {"text_input": "a"}, "nothing is generated"),
    "MLServer test_generate_stream": ("POST", "/v2/models/reviews/generate_stream", {"text_input": "a"}, "as above"),
    "MLServer infer_stream": ("POST", "/v2/models/reviews/infer_stream", {"inputs": []}, "an answer is one piece"),
    "MLServer test_model_repository_unload": ("POST", "/v2/repository/models/reviews/unload", None, "no model control"),
    "MLServer test_model_repository_load": ("POST", "/v2/repository/models/reviews/load", None, "as above"),
    "MLServer test_model_repository_load_error": ("POST", "/v2/repository/models/my-model/load", {}, "as above"),
    "Triton test_loading_large_invalid_model": (
        "POST",
        "/v2/repository/models/invalid_onnx/load",
        {"parameters": {"config": '{"backend": "onnxruntime"}', "file:1/model.onnx": "QUFB" * 10_000}},
        "no model comes by request",
    ),
    "Triton shared memory": (
        "POST",
        "/v2/systemsharedmemory/region/x/register",
        {"key": "/x", "offset": 0, "byte_size": 8},
        "no memory is shared",
    ),
    "Triton CUDA shared memory": ("POST", "/v2/cudasharedmemory/region/x/register", {"byte_size": 8}, "as above"),
    "Triton shared memory status": ("GET", "/v2/systemsharedmemory/status", None, "as above"),
    "Triton trace": ("POST", "/v2/trace/setting", {"trace_file": "/tmp/x"}, "no settings by request"),
    "Triton trace of a model": ("POST", "/v2/models/reviews/trace/setting", {"trace_file": "/tmp/x"}, "as above"),
    "Triton logging": ("POST", "/v2/logging", {"log_file": "/tmp/x"}, "as above"),
    "Triton statistics": ("GET", "/v2/models/reviews/stats", None, "/metrics has them"),
    "Triton model configuration": ("GET", "/v2/models/reviews/config", None, "the metadata has what is asked for"),
    "Triton input in shared memory": (
        "POST",
        "/v2/models/reviews/infer",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": SHARED_MEMORY}]},
        "no memory is shared",
    ),
    "Triton output in shared memory": (
        "POST",
        "/v2/models/reviews/infer",
        {"inputs": [text_tensor("a")], "outputs": [{"name": "label", "parameters": SHARED_MEMORY}]},
        "no memory is shared; an answer elsewhere would be none",
    ),
}


@pytest.mark.parametrize("case", NOT_OFFERED)
def test_what_is_not_offered_is_refused(client: httpx.Client, case: str) -> None:
    method, path, body, _why = NOT_OFFERED[case]
    check_refused(client.request(method, path, json=body), *((400,) if path.endswith("/infer") else (404, 405)))


def test_headers_of_a_request_are_not_sent_back(client: httpx.Client) -> None:
    """MLServer's test_infer_headers wants them back, and CloudEvents' headers; nothing here says who may read them."""
    body = {"inputs": [text_tensor("a")]}
    response = client.post("/v2/models/reviews/infer", json=body, headers={"x-foo": "bar", "cookie": "a=b"})
    assert response.status_code == 200
    assert response.headers.keys().isdisjoint({"x-foo", "cookie", "set-cookie", "ce-specversion"})


@pytest.mark.parametrize(
    "parameters", [{"sequence_id": 1, "sequence_start": True, "sequence_end": True}, {"priority": 1}]
)
def test_a_sequence_or_a_priority_changes_nothing(client: httpx.Client, parameters: dict[str, Any]) -> None:
    """Triton's qa/L0_sequence_batcher: a classifier has no state to keep, so it is left unread, or refused."""
    plain = {"inputs": [text_tensor("a")]}
    response = client.post("/v2/models/reviews/infer", json={**plain, "parameters": parameters})
    if response.status_code == 200:
        assert response.json() == client.post("/v2/models/reviews/infer", json=plain).json()
    else:
        check_refused(response, 400)
