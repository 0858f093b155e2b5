"""`ptexport serve --grpc-port` in a process of its own, with a certificate and a token, and told to stop."""

import resource
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import COMMAND, SERVE, check_success, serving, start

grpc = pytest.importorskip("grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")
stubs = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

BUNDLE = Path(__file__).parents[2] / "golden" / "format-1" / "reviews"
TOKEN = "0123456789abcdef"
SLOWED = """
import time
from ptexport.runtime.ort import graph
run = graph.Graph.run
graph.Graph.run = lambda *given: time.sleep(0.25) or run(*given)
"""


def question(n: int = 1) -> Any:
    made = pb.ModelInferRequest(model_name="reviews")
    made.inputs.add(name="text", datatype="BYTES", shape=[n]).contents.bytes_contents.extend([b"slow"] * n)
    return made


def stub_of(address: str, credentials: Any = None) -> Any:
    assert address.startswith("grpc://")
    where = address.removeprefix("grpc://")
    channel = grpc.insecure_channel(where) if credentials is None else grpc.secure_channel(where, credentials)
    return stubs.GRPCInferenceServiceStub(channel)


def test_both_protocols_answer_the_same() -> None:
    with serving(BUNDLE, "--grpc-port", 0) as record:
        http, grpc_address = record["addresses"]
        assert record["url"] == http
        over_grpc = stub_of(grpc_address).ModelInfer(question()).outputs[1].contents.fp32_contents
        (over_http,) = httpx.post(f"{http}/predict", json={"texts": ["slow"]}).json()["predictions"]
        assert list(over_grpc) == pytest.approx(list(over_http["probabilities"].values()), abs=1e-6)
        counts = [line for line in httpx.get(f"{http}/metrics").text.splitlines() if "_success" in line]
        assert any(line.endswith(" 2.0") for line in counts), counts


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_certificate_and_a_token_for_both(tmp_path: Path) -> None:
    certificate, key, token = tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "token"
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost")
    names = ("-days", "1", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", *made, *names], check=True, capture_output=True)
    token.write_text(TOKEN + "\n")
    for path in (key, token):
        path.chmod(0o600)
    options = ("--tls-cert", certificate, "--tls-key", key, "--token-file", token, "--grpc-port", 0)
    with serving(BUNDLE, *options) as record:
        http, grpc_address = record["addresses"]
        assert (http[:8], record["token"], record["tls"]) == ("https://", True, True)
        trusting = ssl.create_default_context(cafile=str(certificate))
        body = {"texts": ["slow"]}
        with httpx.Client(verify=trusting, base_url=http) as client:
            assert client.post("/predict", json=body).status_code == 401
            assert client.get("/v2/health/ready").status_code == 200
            answered = client.post("/predict", json=body, headers={"authorization": f"Bearer {TOKEN}"})
            assert answered.status_code == 200
        stub = stub_of(grpc_address, grpc.ssl_channel_credentials(certificate.read_bytes()))
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(question())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ModelStreamInfer(iter([question()])))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert len(stub.ModelInfer(question(), metadata=[("authorization", f"Bearer {TOKEN}")]).outputs) == 2
        headers = {"authorization": f"Bearer {TOKEN}"}
        metrics = httpx.get(f"{http}/metrics", headers=headers, verify=trusting).text
        assert 'ptexport_refused_total{code="401"} 3.0' in metrics
        with pytest.raises(grpc.RpcError) as caught:
            stub_of(grpc_address).ServerLive(pb.ServerLiveRequest(), timeout=2)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, "the control: without TLS nobody answers"


def test_sigterm_finishes_calls_that_have_begun() -> None:
    process, record = start(BUNDLE, "--grpc-port", 0, code=SLOWED)
    stub = stub_of(record["addresses"][1])
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    call = stub.ModelInfer.future(question(128))
    time.sleep(0.4)
    assert not call.done()
    process.terminate()
    assert list(call.result(30).outputs[0].shape) == [128]
    check_success(process)
    with pytest.raises(grpc.RpcError):
        stub.ServerLive(pb.ServerLiveRequest(), timeout=2)


def test_a_grpc_port_in_use_is_one_sentence() -> None:
    with serving(BUNDLE, "--grpc-port", 0) as record:
        port = record["addresses"][1].rpartition(":")[2]
        command = [*COMMAND, str(BUNDLE), "--port", "0", "--grpc-port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        why = "cannot listen there, or it is already in use"
        sentence = f"ptexport: 127.0.0.1 port {port}: {why}; choose another with --host or --grpc-port\n"
        assert done.stderr == sentence


@pytest.mark.parametrize("package", ["grpc", "tritonclient"])
def test_without_its_packages_it_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\n{SERVE}"
    command = [sys.executable, "-c", code, "serve", str(BUNDLE), "--port", "0", "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "pip install 'ptexport[grpc]'" in done.stderr


LIMITED = """
from ptexport.runtime.server import grpc_service
grpc_service.MAX_CONNECTIONS, grpc_service.HANDSHAKE_S, grpc_service.IDLE_S = 5, {handshake}, {idle}
"""
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
"""How a connection of HTTP/2 begins."""


def still_open(connections: list[socket.socket]) -> int:
    """Count the connections that the server has not closed."""
    count = 0
    for connection in connections:
        connection.settimeout(0.01)
        try:
            while connection.recv(1 << 12):
                pass
        except TimeoutError:
            count += 1
        except OSError:
            pass
    return count


@pytest.mark.parametrize(
    ("handshake", "idle", "first", "left"),
    [(60, 60, b"", 5), (60, 60, HTTP2, 5), (1, 60, b"", 0), (1, 60, HTTP2, 5), (60, 1, HTTP2, 0)],
    ids=["at most 5", "at most 5 of HTTP/2", "silent ones end", "idle ones stay", "idle ones end"],
)
def test_idle_connections_are_few_and_end(handshake: int, idle: int, first: bytes, left: int) -> None:
    with serving(BUNDLE, "--grpc-port", 0, code=LIMITED.format(handshake=handshake, idle=idle)) as record:
        port = int(record["addresses"][1].rpartition(":")[2])
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(first)
        time.sleep(2.5)
        assert still_open(connections) == left
        assert httpx.get(f"{record['url']}/v2/health/live").status_code == 200
        for connection in connections:
            connection.close()
        time.sleep(0.2)
        stub_of(record["addresses"][1]).ModelInfer(question(), timeout=5)


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    lowered = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000))\n"
    process, _ = start(BUNDLE, code=lowered)
    try:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (1000, 1000)
    finally:
        process.kill()
        process.communicate()
