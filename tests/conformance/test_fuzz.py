"""The fuzzer of `fuzz.py`, which says what it follows, on the real server; and on servers with a fault each.

The long form, 20,000 requests: `make soak`.
"""

import contextlib
import itertools
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.fuzz import WARM_UP, Report, requests, run
from conformance.started import Server, serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

FAULTY = """
import re, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
kept, fault, after = [], sys.argv[1], int(sys.argv[2])
for number in range(10**9):
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(2)
        data, late = b"", number > after
        try:
            while b"\\r\\n\\r\\n" not in data and (block := connection.recv(65536)):
                data += block
            connection.settimeout(0.2)
            length = re.search(rb"(?i)content-length: (\\d+)\\r", data)
            left = int(length[1]) - len(data.partition(b"\\r\\n\\r\\n")[2]) if length else 0
            while left > 0 and (block := connection.recv(65536)):
                left -= len(block)
        except (OSError, ValueError):
            pass
        if late and fault == "leaks":
            kept.append(b"x" * 600_000)
        if number == after and fault == "hangs":
            time.sleep(6)
        if number == after and fault == "ends":
            sys.exit(0)
        status = b"500 Wrong" if number == after and fault == "fails" else b"200 OK"
        body = b"wrong" if late and fault == "forgets" else b"right"
        try:
            if not (number == after and fault == "says nothing"):
                connection.sendall(b"HTTP/1.1 %b\\r\\ncontent-length: 5\\r\\n\\r\\n%b" % (status, body))
        except OSError:
            pass
"""


@contextmanager
def faulty(fault: str, after: int) -> Iterator[Server]:
    """Run a server that is right until that many requests have come."""
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTY, fault, str(after)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Server(f"http://127.0.0.1:{process.stdout.readline().strip()}", "", process)
    finally:
        process.kill()
        process.communicate()


def check(report: Report, count: int) -> None:
    assert report.findings == []
    # Not all is turned away at the door, and not all is taken.
    assert report.statuses[200] > count / 50
    assert report.statuses[400] > count / 50


def test_six_hundred_requests(llama_bundle: Path) -> None:
    with serving(llama_bundle) as server:
        check(run(server, requests(seed=1, count=600)), 600)


@pytest.mark.soak
def test_twenty_thousand_requests(llama_bundle: Path) -> None:
    with serving(llama_bundle) as server:
        started, before = time.monotonic(), server.memory_bytes()
        report = run(server, requests(seed=int(time.time()), count=20_000))
        growth = (server.memory_bytes() - before) / 1e6
        print(
            f"{sum(report.statuses.values())} answers in {time.monotonic() - started:.0f} s, grown by {growth:.0f} MB"
        )
        print(f"by status: {dict(sorted(report.statuses.items()))}")
        check(report, 20_000)


def test_the_same_seed_draws_the_same() -> None:
    assert list(requests(3, 50)) == list(requests(3, 50)) != list(requests(4, 50))


def test_a_server_without_a_fault_has_none() -> None:
    """The control of the controls."""
    with faulty("has none", 0) as server:
        assert run(server, route_requests(WARM_UP + 50)).findings == []


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("leaks", "memory: grew by "),
        ("hangs", "no answer within 5 s"),
        ("ends", "the process has ended"),
        ("fails", "answered 500"),
        ("forgets", "another answer than before"),
        ("says nothing", "closed without an answer"),
    ],
)
def test_a_server_with_a_fault_is_found_out(fault: str, finding: str) -> None:
    with faulty(fault, 20) as server:
        report = run(server, route_requests(WARM_UP + 120))
    assert finding in "\n".join(report.findings)


def route_requests(count: int) -> Iterator[Any]:
    """Requests whose end every server can tell."""
    drawn = (request for request in requests(5, 10**6) if request.kind == "route" and len(request.data) < 2000)
    return itertools.islice(drawn, count)


NUMBERS = (0, 1, -1, 2**31, 2**62, 2**63 - 1, -(2**63))
NAMES = (
    "",
    "text",
    "input_ids",
    "attention_mask",
    "label",
    "\0",
    "a" * 5000,
    "../x",
    "reviews",
    "BYTES",
    "INT64",
    "FP32",
)


def test_bytes_that_are_no_grpc_do_not_stop_it(llama_bundle: Path) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\4\0\0\0\0\0"
    with serving(llama_bundle) as server:
        host, _, port = server.grpc.partition(":")
        for number in range(100):
            draw = random.Random(number)
            start = draw.choice((b"", preface, preface + settings, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port)), 5) as connection:
                connection.sendall(start + draw.randbytes(draw.randrange(300)))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5).ready


def grpc_requests(seed: int, count: int) -> Iterator[Any]:
    """Inference requests some of whose fields hold something else."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        request = service_pb2.ModelInferRequest(model_name="reviews", id=draw.choice(NAMES))
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            tensor = request.inputs.add(name=draw.choice(NAMES[:6]), datatype=draw.choice(NAMES[-3:]))
            tensor.shape.extend(draw.choices(NUMBERS, k=draw.randrange(4)))
            if draw.random() < 0.5:
                tensor.contents.bytes_contents.extend(
                    draw.randbytes(draw.randrange(9)) for _ in range(draw.randrange(3))
                )
            if draw.random() < 0.3:
                tensor.contents.int64_contents.extend(draw.choices(NUMBERS, k=draw.randrange(4)))
            if draw.random() < 0.5:
                request.raw_input_contents.append(draw.randbytes(draw.randrange(64)))
            if draw.random() < 0.3:
                tensor.parameters[draw.choice(NAMES)].int64_param = draw.choice(NUMBERS)
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            request.outputs.add(name=draw.choice(NAMES))
        if draw.random() < 0.3:
            request.parameters[draw.choice(("timeout", "top_k", "raw_scores"))].int64_param = draw.choice(NUMBERS)
        if draw.random() < 0.2:
            request.parameters["task"].string_param = draw.choice(NAMES)
        if draw.random() < 0.1:
            request.model_version = draw.choice(NAMES)
        yield request


def test_three_hundred_requests_over_grpc(llama_bundle: Path) -> None:
    """Each is answered, or refused as the caller's fault: none is INTERNAL or UNKNOWN."""
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"}
    with serving(llama_bundle) as server, grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=bytes,
        )
        for number, request in enumerate(grpc_requests(1, 300)):
            try:
                call(request, timeout=5)
                code = "OK"
            except grpc.RpcError as e:
                code = e.code().name
            assert code in allowed, (number, code, request)
        assert server.process.poll() is None
