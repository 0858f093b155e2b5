"""Connections that no client should make, by raw sockets; uvicorn alone is the control."""

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from raw import ask, connect, read_all, read_one, refused, served, status_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ptexport.runtime.guard.connections import Connection, ConnectionLimits
from ptexport.runtime.guard.limits import LimitBodies


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"bytes": len(body), "headers": sorted(set(request.headers))})


async def large(_: Request) -> Response:
    return Response(b"x" * (16 << 20))


APP = LimitBodies(
    Starlette(routes=[Route("/", echo, methods=["GET", "POST"]), Route("/large", large)]), max_bytes=1 << 20, seconds=1
)


class Quick(Connection):
    limits = ConnectionLimits(connections=600, head_s=0.4, message_bytes=1 << 21, send_s=0.4, linger_s=0.3)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CLOSE = b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(APP, Quick) as port:
        yield port


@pytest.fixture(scope="module")
def plain() -> Iterator[int]:
    """The control: uvicorn's own protocol."""
    with served(APP) as port:
        yield port


def test_a_request_is_answered(port: int) -> None:
    response = ask(port, POST + b"Content-Length: 3\r\n" + CLOSE + b"abc")
    assert (status_of(response), b'{"bytes":3' in response) == (200, True)


def test_a_slow_head_is_refused(port: int, plain: int) -> None:
    drip = [GET, *[b"X: y\r\n"] * 6, CLOSE]
    status, sentence = refused(ask(port, *drip, pause=0.1))
    assert (status, sentence[:50]) == (408, "headers: got only a part of them within 0.4 s; sen")
    assert status_of(ask(plain, *drip, pause=0.1)) == 200


def test_a_slow_second_head_is_refused_and_a_quick_one_after_a_while_is_not(port: int) -> None:
    with connect(port) as connection:
        for _ in range(3):  # the deadline is of each head, not of the connection
            connection.sendall(GET + b"\r\n")
            assert status_of(read_one(connection)) == 200
            time.sleep(0.25)
        connection.sendall(GET)
        assert refused(read_all(connection))[0] == 408


def test_a_connection_without_a_request_is_closed_without_an_answer(port: int, plain: int) -> None:
    assert ask(port) == b""
    with connect(plain, timeout=0.8) as connection, pytest.raises(TimeoutError):
        connection.recv(1)


@pytest.mark.parametrize(
    "head",
    [
        b"X: y\r\n" * 10_000,
        b"X: y\r\n" * 100,  # with Host one too many
        b"X: " + b"y" * (1 << 20) + b"\r\n",
        b"y" * (1 << 20) + b": x\r\n",
        b"X: " + b"y" * 33_000 + b"\r\n",
    ],
)
def test_a_large_head_is_refused(port: int, plain: int, head: bytes) -> None:
    status, sentence = refused(ask(port, GET + head + CLOSE))
    assert (status, sentence) == (431, "headers: got more than 100 or 32768 bytes; send fewer and shorter ones")
    assert status_of(ask(plain, GET + head + CLOSE)) == 200


def test_a_head_of_the_largest_size_is_taken(port: int) -> None:
    assert status_of(ask(port, GET + b"X: y\r\n" * 98 + CLOSE)) == 200
    assert status_of(ask(port, GET + b"X: " + b"y" * 32_600 + b"\r\n" + CLOSE)) == 200


def test_blank_lines_are_no_head(port: int) -> None:
    assert refused(ask(port, b"\r\n" * 50_000))[0] == 431
    assert refused(ask(port, b"\r\n"))[0] == 408


def test_a_long_path_is_refused(port: int, plain: int) -> None:
    head = b"GET /" + b"a" * 2048 + b" HTTP/1.1\r\nHost: a\r\n" + CLOSE
    assert refused(ask(port, head)) == (414, "path: got more than 2048 bytes; send a shorter one")
    assert status_of(ask(plain, head)) == 404


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET v2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://evil HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b"X: a\r\n b\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\nabc",
        POST + b"Content-Length: +1\r\n\r\nabc",
        POST + b"Content-Length: 1, 1\r\n\r\nabc",
        POST + b"Content-Length:\r\n\r\nabc",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_one_sentence(port: int, request_bytes: bytes) -> None:
    status, sentence = refused(ask(port, request_bytes))
    assert (status, sentence[:41]) == (400, "request: got bytes that are not HTTP/1.1;")


def test_uvicorn_alone_answers_what_is_not_http_in_plain_text(plain: int) -> None:
    assert ask(plain, b"nonsense\r\n\r\n").endswith(b"Invalid HTTP request received.")


@pytest.mark.parametrize(
    "flood",
    [
        b"1;" + b"e" * (3 << 20),  # a chunk extension
        b"1\r\nx\r\n" * 600_000,
        b"0" * (3 << 20),  # the length of a chunk
        b"0\r\n" + b"X: y\r\n" * 500_000,  # trailers
    ],
)
def test_a_chunk_flood_is_refused(port: int, flood: bytes) -> None:
    status, sentence = refused(ask(port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + flood))
    assert (status, sentence.split(" with ")[0]) == (413, "body: got more than 2097152 bytes")


def test_trailers_are_no_headers(port: int) -> None:
    body = b"Transfer-Encoding: chunked\r\n" + CLOSE + b"1\r\nx\r\n0\r\nAuthorization: x\r\n\r\n"
    response = ask(port, POST + body)
    assert b'"headers":["connection","host","transfer-encoding"]' in response


def test_a_continue_is_sent_only_for_a_body_that_is_wanted(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n" + CLOSE)
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert status_of(read_all(connection)) == 200
    head = POST + b"Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n"
    assert refused(ask(port, head)) == (413, "body: got more than 1048576 bytes; send fewer texts at once")


def test_a_wish_for_another_protocol_is_ignored_and_the_body_kept(port: int, plain: int) -> None:
    """Java's client sends this with its first request of each connection."""
    head = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    for body in (b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"):
        response = ask(port, POST + head + body)
        assert (status_of(response), b'{"bytes":3' in response) == (200, True)
        response = ask(port, POST + head, body)  # in two pieces
        assert (status_of(response), b'{"bytes":3' in response) == (200, True)
        assert b'{"bytes":3' not in ask(plain, POST + head + body)


def test_requests_before_a_broken_one_get_their_own_answers(port: int, plain: int) -> None:
    two = POST + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n"
    response = ask(port, two + b"nonsense\r\n\r\n")
    assert response.count(b"HTTP/1.1 ") == response.count(b"HTTP/1.1 200 ") == 2
    assert status_of(ask(plain, two + b"nonsense\r\n\r\n")) == 400  # uvicorn lets the refusal overtake


def test_a_broken_body_gets_a_refusal_and_its_request_no_answer(port: int) -> None:
    chunks = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    response = ask(port, chunks, b"zz\r\n", pause=0.05)
    assert refused(response)[0] == 400
    response = ask(port, GET + b"\r\n" + chunks + b"zz\r\n")  # behind another request
    assert re.findall(rb"HTTP/1.1 (\d+)", response) == [b"200", b"408"]


def test_few_requests_may_wait_for_their_answers(port: int) -> None:
    assert ask(port, (GET + b"\r\n") * 15 + GET + CLOSE).count(b"HTTP/1.1 200 ") == 16
    assert 16 <= ask(port, (GET + b"\r\n") * 10_000).count(b"HTTP/1.1 ") < 20


def test_a_client_that_does_not_read_its_answer_is_cut_off(port: int, plain: int) -> None:
    def received(port: int, path: bytes) -> int:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
            connection.settimeout(5)
            connection.connect(("127.0.0.1", port))
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n" + CLOSE)
            time.sleep(0.8)
            return len(read_all(connection))

    assert received(port, b"/large") < 16 << 20
    assert received(plain, b"/large") > 16 << 20


def test_a_half_closed_connection_is_closed(port: int) -> None:
    """The client counts as gone: a process that ended looks the same."""
    for sent in (b"", GET, GET + b"\r\n", POST + b"Content-Length: 3\r\n\r\na"):
        with connect(port) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            started = time.perf_counter()
            assert status_of(read_all(connection)) in (0, 200)
            assert time.perf_counter() - started < 0.3


def test_requests_are_answered_beside_500_idle_connections() -> None:
    class Patient(Connection):
        limits = ConnectionLimits(connections=510, linger_s=0.3)

    with served(APP, Patient) as port:
        idle = [connect(port) for _ in range(500)]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                started = time.perf_counter()
                assert [client.get("/").status_code for _ in range(50)] == [200] * 50
                assert time.perf_counter() - started < 2
            idle += [connect(port) for _ in range(10)]
            response = ask(port, GET + CLOSE)
            assert refused(response) == (503, "server: got more than 510 connections at once; try again later")
            assert b"retry-after: 1\r\n" in response
            for connection in idle[:20]:
                connection.close()
            time.sleep(0.1)
            assert status_of(ask(port, GET + CLOSE)) == 200
        finally:
            for connection in idle:
                connection.close()


def test_a_refused_client_that_still_sends_reads_its_refusal(port: int) -> None:
    def send(_: int) -> int:
        return httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * (8 << 20), timeout=5).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(send, range(12))) == {413}
