"""`ptexport serve` in a process of its own, asked by real clients."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import COMMAND, Kept, check_success, service_of, serving, start

from ptexport.runtime import Engine
from ptexport.runtime.errors import ServeError
from ptexport.runtime.server.address import Listening
from ptexport.runtime.server.listen import listen
from ptexport.runtime.server.stopping import ending_at_a_signal

BUNDLE = Path(__file__).parents[2] / "golden" / "format-1" / "reviews"
INFER = "/v2/models/reviews/infer"
SLOW = {"texts": ["bright" * 16_000] * 10}
"""Words of a hundred kilobytes: a second for the tokenizer."""

SLOWED = """
import time
from ptexport.runtime.ort import graph
from ptexport.runtime.server import listen
listen.DRAIN_S = 1
run = graph.Graph.run
def slowly(self, ids):
    time.sleep(20 if ids["input_ids"].shape[0] == 31 else 0.25)
    return run(self, ids)
graph.Graph.run = slowly
"""
"""Batches that take a quarter of a second, and one of 31 rows that takes 20; and a second to finish."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(BUNDLE)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(BUNDLE) as record, httpx.Client(base_url=record["url"], timeout=60) as connection:
        yield connection


def connect(url: httpx.URL | str) -> socket.socket:
    url = httpx.URL(url)
    return socket.create_connection((url.host, url.port or 0), timeout=60)


def metric(url: httpx.URL | str, name: str, **labels: str) -> float:
    """Sum the samples of a metric with these labels."""
    text = httpx.get(f"{str(url).rstrip('/')}/metrics").text
    lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
    assert lines, f"no {name} in {text}"
    wanted = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.split()[-1]) for line in wanted)


def wait_for(what: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_predict_and_infer_answer_as_the_engine_does(client: httpx.Client, engine: Engine) -> None:
    texts = ["the film was bright", "", "Владивосток\0"]
    need = [list(p.probabilities.values()) for p in engine.predict(texts)]
    answers = client.post("/predict", json={"texts": texts}).json()["predictions"]
    for answer, expected in zip(answers, need, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
    inputs = [{"name": "text", "shape": [3], "datatype": "BYTES", "data": texts}]
    outputs = client.post(INFER, json={"inputs": inputs}).json()["outputs"]
    assert outputs[1]["data"] == pytest.approx([value for row in need for value in row], abs=1e-6)


@pytest.mark.parametrize("path", ["/predict", INFER])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_is_two_mebibytes_at_most(client: httpx.Client, path: str, chunked: bool) -> None:
    whole = b" " * (2 << 20)
    for body, status in ((whole, 400), (whole + b" ", 413)):
        content = iter([body[:1000], body[1000:]]) if chunked else body
        response = client.post(path, content=content)
        assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert response.json()["error"] == "body: got more than 2097152 bytes; send fewer texts at once"


def test_a_client_that_hangs_up_is_no_error(client: httpx.Client) -> None:
    with connect(client.base_url) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
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


def test_a_web_page_of_another_host_gets_nothing(client: httpx.Client) -> None:
    assert client.get("/v2/models", headers={"host": "evil.example"}).status_code == 421
    page = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert client.post("/predict", json={"texts": ["bright"]}, headers=page).status_code == 403
    own = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert client.post("/predict", json={"texts": ["bright"]}, headers=own).status_code == 200


OPENS_SLOWLY = """
import sys, time
from ptexport.runtime import Engine
def open_slowly(*_, **__):
    print("opening", file=sys.stderr, flush=True)
    time.sleep(30)
Engine.open = open_slowly
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_still_opens_bundles(number: signal.Signals) -> None:
    command = [COMMAND[0], "-c", OPENS_SLOWLY + COMMAND[2], "serve", str(BUNDLE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "opening\n"
    process.send_signal(number)
    assert process.communicate(timeout=5) == ("", "")
    assert process.returncode == 0


def test_an_error_puts_the_handlers_of_signals_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ServeError, match="False"), ending_at_a_signal():
        raise ServeError(str(signal.getsignal(signal.SIGTERM) is before))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_client_that_has_gone_costs_no_batch() -> None:
    body = b'{"texts": [%s]}' % b", ".join([b'"slow"'] * 320)
    with serving(BUNDLE, code=SLOWED) as record:
        url = record["url"]
        with connect(url) as connection:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            time.sleep(0.4)
        wait_for(lambda: metric(url, "nv_inference_request_failure", reason="CANCELED") == 1)
        started = time.monotonic()
        assert httpx.post(f"{url}/predict", json={"texts": ["slow"]}).status_code == 200
        assert time.monotonic() - started < 1, "ten batches of 32 texts would take 2.5 s"
        assert metric(url, "nv_inference_request_failure", reason="CANCELED") == 1


def test_a_full_queue_is_told_so_at_once() -> None:
    with serving(BUNDLE, "--max-queue", 64, code=SLOWED) as record, ThreadPoolExecutor() as pool:
        url = f"{record['url']}/predict"
        assert httpx.post(url, json={"texts": ["slow"]}).status_code == 200
        large = pool.submit(httpx.post, url, json={"texts": ["slow"] * 200}, timeout=60)
        time.sleep(0.3)
        with httpx.Client() as other:
            started = time.monotonic()
            refused = other.post(url, json={"texts": ["slow"]})
            took = time.monotonic() - started
        assert (refused.status_code, refused.json()["error"][:29]) == (429, "queue: got 1 texts with 200 w")
        assert int(refused.headers["retry-after"]) >= 1
        assert took < 0.2
        assert large.result().status_code == 200, "a request alone may be larger than the queue"
        assert httpx.post(url, json={"texts": ["slow"]}).status_code == 200
        assert metric(record["url"], "nv_inference_request_failure", reason="REJECTED") == 1


def wait_until_refused(url: str) -> None:
    for _ in range(1000):
        try:
            httpx.get(f"{url}/v2/health/ready")
        except httpx.ConnectError:
            return
        except httpx.TransportError:  # accepted by the kernel just before the listener closed
            continue
    pytest.fail("still listening")


def test_sigterm_finishes_what_has_begun() -> None:
    process, record = start(BUNDLE)
    url, body = record["url"], b'{"texts": ["slow"]}'
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=url, timeout=60) as client, connect(url) as connection:
        # One request is being answered, of another only the first bytes have come.
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5]
        )
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


def test_what_takes_too_long_to_finish_is_told_so() -> None:
    """16 batches of a quarter of a second, with one second to finish; and room for another text in the queue."""
    process, record = start(BUNDLE, code=SLOWED)
    url = f"{record['url']}/predict"
    with ThreadPoolExecutor() as pool:
        long = pool.submit(httpx.post, url, json={"texts": ["slow"] * 500}, timeout=60)
        time.sleep(0.4)
        asked = time.monotonic()
        other = httpx.post(url, json={"texts": ["slow"]}, timeout=60)
        assert other.status_code == 200
        assert time.monotonic() - asked < 1.5, "in its turn, not after the whole of the other"
        assert not long.done()
        process.terminate()
        started = time.monotonic()
        assert long.result().status_code == 503
        assert long.result().json()["error"].startswith("server: stopped before the answer was ready")
    check_success(process)
    assert time.monotonic() - started < 4


def test_no_batch_keeps_the_command_from_ending() -> None:
    """A batch takes 20 s here; what is said is one second, and a little for leaving."""
    process, record = start(BUNDLE, code=SLOWED)
    with ThreadPoolExecutor() as pool:
        long = pool.submit(httpx.post, f"{record['url']}/predict", json={"texts": ["slow"] * 31}, timeout=60)
        time.sleep(0.3)
        process.terminate()
        started = time.monotonic()
        assert long.result().status_code == 503
    check_success(process)
    assert time.monotonic() - started < 4


def test_sigint_is_a_success() -> None:
    process, _ = start(BUNDLE, "--host", "localhost")
    process.send_signal(signal.SIGINT)
    check_success(process)


def test_a_port_in_use_is_one_sentence(client: httpx.Client) -> None:
    port = str(client.base_url.port)
    done = subprocess.run([*COMMAND, str(BUNDLE), "--port", port], capture_output=True, text=True, check=False)
    sentence = f"ptexport: 127.0.0.1 port {port}: already in use; choose another with --host or --port\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_two_bundles_are_served_at_once_unless_they_have_tasks_of_one_name() -> None:
    with serving(BUNDLE, BUNDLE.with_name("both")) as record:
        assert [model["name"] for model in record["models"]] == ["reviews", "tone", "mood"]
        body = {"texts": ["slow", "bright"], "task": "all"}
        (first, _) = httpx.post(f"{record['url']}/predict", json=body).json()["predictions"]
        assert list(first) == ["reviews", "tone", "mood"]
    done = subprocess.run([*COMMAND, *[str(BUNDLE)] * 2, "--port", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "has the task reviews, which another bundle has too" in done.stderr


def test_an_address_that_is_not_ours(engine: Engine) -> None:
    for host in ("192.0.2.1", "a..b"):
        with pytest.raises(ServeError, match=re.escape(f"{host} port 0: cannot listen there (")):
            listen(service_of(engine), Kept(), Listening(host=host, port=0), on_ready=print)


def test_what_is_refused_before_it_reaches_a_route_is_counted(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    right = {"authorization": "Bearer 0123456789abcdef"}
    with serving(BUNDLE, "--token-file", token) as record, httpx.Client(base_url=record["url"]) as client:
        for _ in range(2):
            assert client.get("/v2/models").status_code == 401
        large, packed = b" " * (3 << 20), {"content-encoding": "gzip"}
        assert client.post("/predict", content=large, headers=right).status_code == 413
        assert client.post("/predict", content=b"x", headers={**right, **packed}).status_code == 415
        assert client.get("/v2/models", headers={**right, "x": "y" * 40_000}).status_code == 431
        with connect(record["url"]) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert connection.recv(1 << 12).startswith(b"HTTP/1.1 400 ")
        assert client.post("/predict", content=b"{", headers=right).status_code == 400  # it has reached its route
        text = client.get("/metrics", headers=right).text
    counts = dict(re.findall(r'^ptexport_refused_total\{code="(\d+)"\} (\S+)$', text, re.MULTILINE))
    assert counts == {"401": "2.0", "413": "1.0", "415": "1.0", "431": "1.0", "400": "1.0"}
