"""A real server in a process of its own, asked by a real client; and the application alone, fed anything."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ptexport.runtime import Engine
from ptexport.runtime.server import MAX_BODY_BYTES, make_app


def start(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", "from ptexport.toolkit.cli import main; main()", "serve", str(bundle)]
    process = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, httpx.Response(200, text=process.stdout.readline()).json()["url"]


@pytest.fixture(scope="module")
def url(llama_bundle: Path) -> Iterator[str]:
    process, address = start(llama_bundle)
    yield address
    process.terminate()
    assert process.wait(30) == 0
    assert process.stdout is not None
    process.stdout.close()


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["slow", ""], **changes}


def test_both_routes_answer_as_the_engine_does(url: str, llama_bundle: Path) -> None:
    texts = ["the film was bright", "", "Владивосток\0"]
    expected = Engine.open(llama_bundle).predict(texts)
    answer = httpx.post(f"{url}/predict", json={"texts": texts}).json()["predictions"]
    assert [a["label"] for a in answer] == [p.label for p in expected]
    body = {"id": "7", "inputs": [tensor(shape=[3], data=texts)]}
    answer = httpx.post(f"{url}/v2/models/reviews/infer", json=body).json()
    assert (answer["model_name"], answer["id"]) == ("reviews", "7")
    labels, probabilities = answer["outputs"]
    assert labels == {"name": "label", "datatype": "BYTES", "shape": [3], "data": [p.label for p in expected]}
    assert probabilities["shape"] == [3, 2]
    flat = [value for p in expected for value in p.probabilities.values()]
    assert probabilities["data"] == pytest.approx(flat, abs=1e-5)


def test_health_and_metadata(url: str) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/reviews/ready", "/v2"):
        assert httpx.get(url + path).status_code == 200
    model = httpx.get(f"{url}/v2/models/reviews").json()
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert model["parameters"] == {"labels": ["positive", "negative"]}
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "body: Input data was truncated"),
        (b'{"text": []}', "unknown field `text`"),
        (b'{"texts": [1]}', r"Expected `str . array`, got `int`"),
        (b'{"texts": [["a", "b"]]}', r"texts\[0\]: need 1 string"),
        (b'{"texts": ["\\ud800"]}', "body: "),
        (b'{"texts": "' + b"\xff" + b'"}', "body: "),
        (b'{"texts": [' + b'"",' * 1024 + b'""]}', "at most 1024"),
    ],
)
def test_bad_bodies_get_a_sentence(url: str, body: bytes, message: str) -> None:
    response = httpx.post(f"{url}/predict", content=body)
    assert response.status_code == 400
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(response.json()["error"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": []}, r"inputs: got \[\], need \['text'\]"),
        ({"inputs": [tensor(name="x")]}, "need"),
        ({"inputs": [tensor(shape=[3])]}, r"got shape \[3\], need \[2\]"),
        ({"inputs": [tensor(datatype="INT64")]}, "need BYTES"),
        ({"inputs": [tensor(data=[1, 2])]}, "got `int`"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, "need one of"),
    ],
)
def test_bad_tensors_get_a_sentence(url: str, body: dict[str, Any], message: str) -> None:
    response = httpx.post(f"{url}/v2/models/reviews/infer", json=body)
    assert response.status_code == 400
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(response.json()["error"])


def test_limits_and_unknown_places(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    assert httpx.post(f"{url}/predict", content=chunks()).status_code == 413
    assert httpx.get(f"{url}/predict").status_code == 405
    assert httpx.get(f"{url}/nowhere").json() == {"error": "Not Found"}
    assert httpx.get(f"{url}/v2/models/other").json() == {"error": "model: unknown, this server has 'reviews'"}
    binary = {"Inference-Header-Content-Length": "9"}
    response = httpx.post(f"{url}/v2/models/reviews/infer", json={"inputs": [tensor()]}, headers=binary)
    assert "binary tensors are not supported" in response.json()["error"]


def test_sigterm_finishes_what_has_begun(llama_bundle: Path) -> None:
    process, address = start(llama_bundle)
    host, port = address.removeprefix("http://").split(":")
    body = b'{"texts": ["slow"]}'
    import socket

    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body[:5])
        time.sleep(0.3)  # the request has begun; its body has not arrived
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body[5:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/v2/health/live")
    assert process.stdout is not None
    process.stdout.close()


def test_a_port_in_use_is_one_sentence(url: str, llama_bundle: Path) -> None:
    command = [sys.executable, "-c", "from ptexport.toolkit.cli import main; main()", "serve", str(llama_bundle)]
    done = subprocess.run(
        [*command, "--port", url.rsplit(":", 1)[1]], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ptexport: 127.0.0.1 port ")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def application(llama_bundle: Path) -> TestClient:
    return TestClient(make_app(Engine.open(llama_bundle)), raise_server_exceptions=False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ).map(lambda value: httpx.Request("POST", "http://x", json={"texts": value, "inputs": value}).content),
    path=st.sampled_from(["/predict", "/v2/models/reviews/infer"]),
)
def test_no_body_makes_a_server_error(application: TestClient, body: bytes, path: str) -> None:
    assert application.post(path, content=body).status_code < 500
