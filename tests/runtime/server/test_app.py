"""A real server in a process of its own, asked by a real client; and the application alone, fed anything."""

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tokenizers import Tokenizer, processors

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, Bundle
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.task_encoders import TaskEncoders
from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import ServeError
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.server.app import MAX_BODY_BYTES, make_app, serve

COMMAND = [sys.executable, "-c", "from ptexport.toolkit.cli.main import main; main()", "serve"]
INFER = "/v2/models/reviews/infer"
TEXTS = ["the film was bright", "", "Владивосток\0"]
SLOW = {"texts": ["bright" * 170_000]}
"""One word of a megabyte: a second for the tokenizer."""


def start(bundle: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*COMMAND, str(bundle), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


def check_success(process: subprocess.Popen[str]) -> None:
    """It has been told to stop: it does, with success and nothing to say (least of all anybody's text)."""
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


@pytest.fixture(scope="module")
def engine(llama_bundle: Path) -> Engine:
    return Engine.open(llama_bundle)


@pytest.fixture(scope="module")
def client(llama_bundle: Path) -> Iterator[httpx.Client]:
    process, url = start(llama_bundle)
    with httpx.Client(base_url=url, timeout=60) as connection:
        yield connection
    process.terminate()
    check_success(process)


@pytest.fixture(scope="module")
def application(engine: Engine) -> Iterator[TestClient]:
    with TestClient(make_app(engine), raise_server_exceptions=False) as connection:
        yield connection


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["slow", ""], **changes}


def test_predict_answers_as_the_engine_does(client: httpx.Client, engine: Engine) -> None:
    answers = client.post("/predict", json={"texts": TEXTS}).json()["predictions"]
    for answer, prediction in zip(answers, engine.predict(TEXTS), strict=True):
        assert answer["label"] == prediction.label
        assert answer["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_infer_answers_as_the_engine_does(client: httpx.Client, engine: Engine) -> None:
    expected = engine.predict(TEXTS)
    answer = client.post(INFER, json={"id": "7", "inputs": [tensor(shape=[3, 1], data=TEXTS)]}).json()
    assert (answer["model_name"], answer["id"]) == ("reviews", "7")
    labels, probabilities = answer["outputs"]
    assert labels == {"name": "label", "datatype": "BYTES", "shape": [3], "data": [p.label for p in expected]}
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [3, 2])
    flat = [value for p in expected for value in p.probabilities.values()]
    assert probabilities["data"] == pytest.approx(flat, abs=1e-6)
    answer = client.post(INFER, json={"inputs": [tensor()], "outputs": [{"name": "label"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert "id" not in answer


def test_no_texts_get_no_answers(client: httpx.Client) -> None:
    assert client.post("/predict", json={"texts": []}).json() == {"predictions": []}
    outputs = client.post(INFER, json={"inputs": [tensor(shape=[0], data=[])]}).json()["outputs"]
    assert [(output["shape"], output["data"]) for output in outputs] == [([0], []), ([0, 2], [])]


def test_health_and_metadata(client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/reviews/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json().keys() == {"name", "version", "extensions"}
    model = client.get("/v2/models/reviews").json()
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert model["parameters"] == {"labels": ["positive", "negative"]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "body: got text that is not JSON (its end is missing)"),
        (b'{"text": []}', "body: got a field or value that does not fit, need the fields texts, task; send"),
        (b'{"texts": [1]}', "texts[0]: got a field or value that does not fit"),
        (b'{"texts": [["a", "b"]]}', "texts[0]: got a list of 2 strings, need a string"),
        (b'{"texts": ["\\udc00 alone"]}', "body: got half of a surrogate pair, need Unicode; escape both halves"),
        (b'{"texts": ["\xff"]}', "body: got bytes that are not UTF-8"),
        (b'{"texts": [' + b'"",' * 1024 + b'""]}', "body: got 1025 texts, need at most 1024"),
    ],
)
def test_bad_bodies_get_a_sentence(client: httpx.Client, body: bytes, message: str) -> None:
    response = client.post("/predict", content=body)
    assert (response.status_code, response.json().keys()) == (400, {"error"})
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": []}, "inputs: got 0 tensor(s), need ['text']"),
        ({"inputs": [tensor(name="x")]}, "inputs: got 1 tensor(s), need ['text']"),
        ({"inputs": [tensor(shape=[3])]}, "input 'text': got shape [3], need [2]"),
        ({"inputs": [tensor(datatype="INT64")]}, "input 'text': got another datatype, need BYTES"),
        (
            {"inputs": [tensor(data=[1, 2])]},
            "inputs[0].data[0]: got a field or value that does not fit, need the fields inputs",
        ),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, "outputs: got an unknown or repeated name"),
    ],
)
def test_bad_tensors_get_a_sentence(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    response = client.post(INFER, json=body)
    assert (response.status_code, response.json().keys()) == (400, {"error"})
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "path: unknown; use "),
        ("POST", "/predict/", 404, "path: unknown; use "),
        ("GET", "/predict", 405, "method: not allowed for this path; use POST for /predict"),
        ("POST", "/v2/health/live", 405, "method: not allowed for this path; use POST for /predict"),
        ("GET", "/v2/models/other", 404, "model: got another name, need 'reviews'"),
        ("GET", "/v2/models/other/ready", 404, "model: got another name, need 'reviews'"),
        ("POST", "/v2/models/other/infer", 404, "model: got another name, need 'reviews'"),
    ],
)
def test_unknown_places_get_a_sentence(client: httpx.Client, method: str, path: str, status: int, message: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert response.json()["error"].startswith(message)
    assert ("allow" in response.headers) == (status == 405)


def test_binary_tensors_are_refused(client: httpx.Client) -> None:
    binary = {"Inference-Header-Content-Length": "9"}
    response = client.post(INFER, json={"inputs": [tensor()]}, headers=binary)
    assert (response.status_code, response.json()["error"][:32]) == (400, "body: got binary tensors, need J")


@pytest.mark.parametrize("path", ["/predict", INFER])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_is_a_mebibyte_at_most(client: httpx.Client, path: str, chunked: bool) -> None:
    whole = b" " * MAX_BODY_BYTES
    for body, status in ((whole, 400), (whole + b" ", 413)):
        content = iter([body[:1000], body[1000:]]) if chunked else body
        response = client.post(path, content=content)
        assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert response.json()["error"] == "body: got more than 1048576 bytes; send fewer texts at once"


def test_a_client_that_hangs_up_is_no_error(client: httpx.Client) -> None:
    with connect(client.base_url) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    assert client.get("/v2/health/live").status_code == 200  # and at the end nothing was logged


def test_health_answers_while_a_slow_request_runs(client: httpx.Client) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(client.post, "/predict", json=SLOW)
        time.sleep(0.1)
        assert client.get("/v2/health/ready").status_code == 200
        assert not slow.done()
        assert slow.result().status_code == 200


def test_only_the_given_address_is_listened_on(client: httpx.Client) -> None:
    assert client.base_url.host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):  # all of 127/8 is this machine
        socket.create_connection(("127.0.0.2", client.base_url.port or 0))


def connect(url: httpx.URL | str) -> socket.socket:
    url = httpx.URL(url)
    return socket.create_connection((url.host, url.port or 0), timeout=60)


def wait_until_refused(url: str) -> None:
    for _ in range(1000):
        try:
            httpx.get(f"{url}/v2/health/ready")
        except httpx.ConnectError:
            return
        except httpx.TransportError:  # accepted by the kernel just before the listener closed
            continue
    pytest.fail("still listening")


def test_sigterm_finishes_what_has_begun(llama_bundle: Path) -> None:
    process, url = start(llama_bundle)
    body = b'{"texts": ["slow"]}'
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=url, timeout=60) as client, connect(url) as connection:
        # One request is being answered, of another only the first bytes have come.
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
        slow = pool.submit(client.post, "/predict", json=SLOW)
        time.sleep(0.1)
        assert client.get("/v2/health/ready").status_code == 200
        assert not slow.done()
        process.send_signal(signal.SIGTERM)
        wait_until_refused(url)
        connection.sendall(body[5:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert slow.result().status_code == 200
    check_success(process)


SLOW_SERVER = """
import sys, time
from ptexport.runtime import Engine
from ptexport.runtime.ort import graph
from ptexport.runtime.server import app
app.DRAIN_S = 1
run = graph.Graph.run
graph.Graph.run = lambda *given: time.sleep(0.25) or run(*given)
app.serve(Engine.open(sys.argv[1]), host="127.0.0.1", port=0, on_ready=lambda url: print(url, flush=True))
"""


def test_what_takes_too_long_to_finish_is_told_so(llama_bundle: Path) -> None:
    """32 turns of a quarter of a second, with one second to finish; without the pauses it is the engine as it is."""
    command = [sys.executable, "-c", SLOW_SERVER, str(llama_bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with ThreadPoolExecutor() as pool:
            long = pool.submit(httpx.post, f"{url}/predict", json={"texts": ["slow"] * 1024}, timeout=60)
            time.sleep(0.7)
            other = pool.submit(httpx.post, f"{url}/predict", json={"texts": ["slow"]}, timeout=60)
            assert other.result().status_code == 200  # in its turn, not after the whole of the other
            assert not long.done()
            process.terminate()
            started = time.monotonic()
            assert long.result().status_code == 503
            assert long.result().json()["error"].startswith("server: stopped, 1 s after it was told to")
        assert process.wait(60) == 0
        assert time.monotonic() - started < 4


STUCK_COMMAND = """
import sys, time
from ptexport.runtime.ort import graph
from ptexport.runtime.server import app
from ptexport.toolkit.cli.main import main
app.DRAIN_S = 1
run = graph.Graph.run
graph.Graph.run = lambda self, ids: time.sleep(20 * (len(ids["input_ids"]) == 32)) or run(self, ids)
main()
"""


def test_no_turn_keeps_the_command_from_ending(llama_bundle: Path) -> None:
    """A turn takes 20 s here; what is said is one second, and a little for leaving."""
    command = [sys.executable, "-c", STUCK_COMMAND, "serve", str(llama_bundle), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with ThreadPoolExecutor() as pool:
            long = pool.submit(httpx.post, f"{url}/predict", json={"texts": ["slow"] * 32}, timeout=60)
            time.sleep(0.3)
            process.terminate()
            started = time.monotonic()
            assert long.result().status_code == 503
        assert process.wait(60) == 0
        assert time.monotonic() - started < 4


def test_sigint_is_a_success(llama_bundle: Path) -> None:
    process, _ = start(llama_bundle, "--host", "localhost")
    process.send_signal(signal.SIGINT)
    check_success(process)


def test_a_port_in_use_is_one_sentence(client: httpx.Client, llama_bundle: Path) -> None:
    port = str(client.base_url.port)
    done = subprocess.run([*COMMAND, str(llama_bundle), "--port", port], capture_output=True, text=True, check=False)
    sentence = f"ptexport: 127.0.0.1 port {port}: already in use; choose another with --host or --port\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_an_address_that_is_not_ours(engine: Engine) -> None:
    with pytest.raises(ServeError, match=re.escape("192.0.2.1 port 0: cannot listen there (")):
        serve(engine, host="192.0.2.1", port=0, on_ready=print)
    with pytest.raises(ServeError, match=re.escape("a..b port 0: cannot listen there (")):
        serve(engine, host="a..b", port=0, on_ready=print)


def test_pairs(llama_bundle: Path) -> None:
    """The bundle's graph behind a template of two texts."""
    bundle = Bundle.open(llama_bundle)
    task = msgspec.structs.replace(bundle.manifest.task, fields=["text", "text_b"])
    pairs = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, tasks=[task]))
    tokenizer = Tokenizer.from_file(str(llama_bundle / TOKENIZER))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    encoders = TaskEncoders(of_task=[TextEncoder(tokenizer, fields=task.fields)])
    engine = Engine(pairs, OpenState(encoders, Graph.open(llama_bundle / MODEL)))
    client = TestClient(make_app(engine))
    expected = engine.predict([("the film", "was bright")])[0].probabilities
    (answer,) = client.post("/predict", json={"texts": [["the film", "was bright"]]}).json()["predictions"]
    assert answer["probabilities"] == pytest.approx(expected, abs=1e-6)
    columns = [tensor(name="text_b", shape=[1], data=["was bright"]), tensor(shape=[1], data=["the film"])]
    answer = client.post(INFER, json={"inputs": columns}).json()["outputs"][1]
    assert answer["data"] == pytest.approx(list(expected.values()), abs=1e-6)
    assert "need a list of 2 strings" in client.post("/predict", json={"texts": ["the film"]}).json()["error"]


def test_a_failure_of_ours_is_a_sentence_too(llama_bundle: Path) -> None:
    bundle, graph = Bundle.open(llama_bundle), Graph.open(llama_bundle / MODEL)
    graph._pool = None  # type: ignore[assignment]
    engine = Engine(bundle, OpenState(TaskEncoders.open(bundle), graph))
    client = TestClient(make_app(engine), raise_server_exceptions=False)
    response = client.post("/predict", json={"texts": ["slow"]})
    assert (response.status_code, response.json().keys()) == (500, {"error"})


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    ).map(lambda value: json.dumps({"texts": value}).encode())
    | st.fixed_dictionaries(
        {
            "name": st.sampled_from(["text", "text_b", ""]),
            "shape": st.lists(st.integers(-1, 3), max_size=3),
            "datatype": st.sampled_from(["BYTES", "FP32"]),
            "data": st.lists(st.text() | st.lists(st.text(), max_size=2), max_size=3),
        }
    ).map(lambda value: json.dumps({"inputs": [value]}).encode()),
    path=st.sampled_from(["/predict", INFER]),
)
def test_no_body_makes_a_server_error(application: TestClient, body: bytes, path: str) -> None:
    assert application.post(path, content=body).status_code in (200, 400)
