"""What KServe's clients send, byte for byte, and the sample request that KServe publishes.

The clients themselves: `kserve_client.py`, which needs an environment of its own. What is sent here is what kserve
0.21.0 (https://pypi.org/project/kserve/) sent to a transport that recorded it. The sample:
https://github.com/kserve/kserve/blob/master/test/e2e/data/bert_sequence_classification_v2.json.
"""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from conformance.started import Server, bytes_tensor, outputs_of, strings_of
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ptexport.runtime import Engine

TEXTS = ["the film was bright", "slow", "Владивосток"]
RAW = bytes_tensor(*(text.encode() for text in TEXTS))
JSON = {"accept": "*/*", "accept-encoding": "gzip, deflate", "content-type": "application/json"}
BINARY = {**JSON, "content-type": "application/octet-stream"}
SIZE = {"parameters": {"binary_data_size": 57}}


def start_of(tensor: dict[str, Any], **more: Any) -> bytes:
    """The JSON that kserve writes: compact, UTF-8, and with the model's name in it."""
    tensor = {"name": "text", "shape": tensor.pop("shape"), "datatype": "BYTES", **tensor}
    record = {"id": "7", "model_name": "reviews", "inputs": [tensor], **more}
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()


SENT: dict[str, tuple[bytes, bytes]] = {
    "a list": (start_of({"shape": [3], "data": TEXTS}), b""),
    "a list as a column": (start_of({"shape": [3, 1], "data": TEXTS}), b""),
    "numpy, binary": (start_of({"shape": [3], **SIZE}), RAW),
    "numpy, binary, as a column": (start_of({"shape": [3, 1], **SIZE}), RAW),
    "binary outputs asked for one by one": (
        start_of(
            {"shape": [3], **SIZE},
            outputs=[{"name": name, "parameters": {"binary_data": True}} for name in ("label", "probabilities")],
        ),
        RAW,
    ),
    "binary outputs asked for": (start_of({"shape": [3], **SIZE}, parameters={"binary_data_output": True}), RAW),
}
LENGTHS = {"numpy, binary": 128, "numpy, binary, as a column": 130}
"""`inference-header-content-length` as kserve sent it."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection


def read(response: httpx.Response) -> dict[str, np.ndarray[Any, Any]]:
    """Read the outputs as kserve does: those with a binary size from the end of the body, the others from its JSON."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    answer, rest = json.loads(response.content[:length]), response.content[length:]
    read: dict[str, np.ndarray[Any, Any]] = {}
    for name, output in outputs_of(answer).items():
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(output["data"])
        elif output["datatype"] == "FP32":
            values = np.frombuffer(rest[:size], "<f4")
        else:
            values = np.array(strings_of(rest[:size]))
        rest = rest[size or 0 :]
        read[name] = values.reshape(output["shape"])
    assert rest == b""
    return read


def check(outputs: dict[str, np.ndarray[Any, Any]], engine: Engine, texts: list[str]) -> None:
    expected = engine.predict(texts)
    assert outputs["label"].reshape(-1).tolist() == [prediction.label for prediction in expected]
    right = [list(prediction.probabilities.values()) for prediction in expected]
    np.testing.assert_allclose(outputs["probabilities"].reshape(len(texts), -1), right, atol=1e-5)


@pytest.mark.parametrize("what", SENT)
def test_what_kserve_sends_is_answered(client: httpx.Client, engine: Engine, what: str) -> None:
    start, rest = SENT[what]
    assert len(start) == LENGTHS.get(what, len(start))
    headers = {**BINARY, "inference-header-content-length": str(len(start))} if rest else JSON
    response = client.post("/v2/models/reviews/infer", content=start + rest, headers=headers)
    check(read(response), engine, TEXTS)
    assert ("inference-header-content-length" in response.headers) == ("binary outputs" in what)


def test_kserve_s_published_sample_is_answered(client: httpx.Client, engine: Engine) -> None:
    text = "Hello, my dog is cute."
    sample = {"inputs": [{"name": "input-0", "datatype": "BYTES", "shape": [], "data": [text]}]}
    check(read(client.post("/v2/models/reviews/infer", json=sample)), engine, [text])


def test_kserve_s_probes_are_answered(client: httpx.Client) -> None:
    """kserve reads `live` and `ready` of the bodies; its model probe wants the name too."""
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json()["ready"] is True
    said = client.get("/v2/models/reviews/ready").json()
    assert (said["name"], said["ready"]) == ("reviews", True)
    models = client.get("/v2/models").json()["models"]
    assert "reviews" in [model if isinstance(model, str) else model["name"] for model in models]


@pytest.mark.parametrize("raw", [True, False])
def test_what_kserve_sends_over_grpc_is_answered(server: Server, engine: Engine, raw: bool) -> None:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[3, 1])
    request = service_pb2.ModelInferRequest(model_name="reviews", id="7")
    if raw:  # with the parameter of its REST tensors, which means nothing here
        tensor.parameters["binary_data_size"].int64_param = 57
        request.raw_input_contents.append(RAW)
    else:
        tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    request.inputs.append(tensor)
    with grpc.insecure_channel(server.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    assert (answer.model_name, answer.id) == ("reviews", "7")
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    for number, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            data = answer.raw_output_contents[number]
            values = np.frombuffer(data, "<f4") if output.datatype == "FP32" else np.array(strings_of(data))
        elif output.datatype == "FP32":
            values = np.array(output.contents.fp32_contents)
        else:
            values = np.array([text.decode() for text in output.contents.bytes_contents])
        outputs[output.name] = values.reshape(tuple(output.shape))
    check(outputs, engine, TEXTS)
