"""Bodies that no client should send, by raw sockets; an application without the middleware is the control."""

import asyncio
import gzip
import threading
import time
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest
from raw import ask, connect, read_all, read_one, refused, served, status_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ptexport.runtime.guard.connections import Connection
from ptexport.runtime.guard.limits import LimitBodies

MOST = 1 << 20
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n"

reached: list[int] = []


async def count(request: Request) -> Response:
    body = await request.body()
    reached.append(len(body))
    return JSONResponse({"bytes": len(body)})


INNER = Starlette(routes=[Route("/", count, methods=["GET", "POST"])])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(LimitBodies(INNER, max_bytes=MOST, seconds=0.4), Connection) as port:
        yield port


@pytest.fixture(scope="module")
def plain() -> Iterator[int]:
    with served(INNER) as port:
        yield port


@pytest.fixture(autouse=True)
def nothing_reached() -> None:
    reached.clear()


def test_a_slow_body_is_refused(port: int, plain: int) -> None:
    drip = [HEAD + CLOSE + b"Content-Length: 7\r\n\r\n", *[b"x"] * 7]
    status, sentence = refused(ask(port, *drip, pause=0.1))
    assert (status, sentence) == (408, "body: got only a part of it within 0.4 s, need all of it; send it faster")
    assert reached == []
    assert status_of(ask(plain, *drip, pause=0.1)) == 200


def test_a_body_that_stops_is_refused(port: int) -> None:
    started = time.perf_counter()
    assert refused(ask(port, CHUNKED + b"3\r\nab"))[0] == 408
    assert time.perf_counter() - started < 1.9  # the deadline, and a second for the client to read its refusal


def test_a_body_is_as_large_as_allowed(port: int, plain: int) -> None:
    with httpx.Client() as client:
        for size, status in ((MOST - 1, 200), (MOST, 200), (MOST + 1, 413)):
            for content in (b"x" * size, iter([b"x" * (size - 7), b"x" * 7])):
                assert client.post(f"http://127.0.0.1:{port}/", content=content).status_code == status
        assert client.post(f"http://127.0.0.1:{plain}/", content=b"x" * (MOST + 1)).status_code == 200
    assert reached == [MOST - 1, MOST - 1, MOST, MOST, MOST + 1]


def test_all_bodies_together_are_as_large_as_allowed() -> None:
    """Six that stay unfinished are too much for one more; once they are gone there is room again."""
    whole = HEAD + CLOSE + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000
    for most, statuses in ((6000, [503, 200]), (MOST, [200, 200])):
        with served(LimitBodies(INNER, max_all_bytes=most), Connection) as port:
            open_ones = [connect(port) for _ in range(6)]
            for connection in open_ones:
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 999)
            time.sleep(0.2)
            first = ask(port, whole)
            for connection in open_ones:
                connection.close()
            time.sleep(0.2)
            assert [status_of(first), status_of(ask(port, whole))] == statuses
            if statuses[0] == 503:
                assert b"\r\nretry-after: 1\r\n" in first
                assert refused(first)[1] == "server: got more than 6000 bytes of bodies at once; try again later"


def test_a_body_counts_until_it_is_answered() -> None:
    """Also when the application fails."""
    seen = []

    async def fails(_: Scope, receive: Receive, __: Send) -> None:
        seen.append((len((await receive())["body"]), limit._all_bytes))
        raise KeyError

    async def receive() -> Message:
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def send(_: Message) -> None:
        raise AssertionError

    limit = LimitBodies(fails)
    for _ in range(2):
        with pytest.raises(KeyError):
            asyncio.run(limit({"type": "http", "headers": [(b"content-length", b"3")]}, receive, send))
    assert (seen, limit._all_bytes) == ([(3, 3)] * 2, 0)


def test_a_body_is_kept_once() -> None:
    """Pieces of 64 kB of a body of 8 MiB: joined at the end they would take twice its size."""
    piece, count = 1 << 16, 128

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        await receive()

    def peak() -> int:
        left = [count]

        async def receive() -> Message:
            left[0] -= 1
            return {"type": "http.request", "body": bytes(piece), "more_body": left[0] > 0}

        async def send(_: Message) -> None:
            raise AssertionError

        tracemalloc.start()
        limit = LimitBodies(app, max_bytes=piece * count)
        asyncio.run(limit({"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}, receive, send))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert piece * count < peak() < 1.4 * piece * count


def test_an_announced_size_is_refused_before_the_body_comes(port: int) -> None:
    for size in (MOST + 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        with connect(port) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
            started = time.perf_counter()
            assert status_of(read_one(connection)) == 413
            assert time.perf_counter() - started < 0.2
    assert reached == []


def test_a_compressed_body_is_refused_before_it_is_read(port: int) -> None:
    bomb = gzip.compress(bytes(50 << 20))
    tracemalloc.start()
    for coding in (b"gzip", b"br", b"GZIP, identity", b"x"):
        head = HEAD + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding, len(bomb))
        status, sentence = refused(ask(port, head + bomb))
        assert (status, sentence.split(",")[0]) == (415, "content-encoding: got a compressed body")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert reached == []
    head = HEAD + CLOSE + b"Content-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc"
    assert status_of(ask(port, head)) == 200


def test_another_transfer_coding_is_refused(port: int, plain: int) -> None:
    head = HEAD + CLOSE + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    assert refused(ask(port, head))[0] == 400
    assert status_of(ask(plain, head)) == 200


def test_no_body_and_any_content_type_are_taken(port: int) -> None:
    assert status_of(ask(port, HEAD + CLOSE + b"\r\n")) == 200
    assert status_of(ask(port, HEAD + CLOSE + b"Content-Length: 0\r\n\r\n")) == 200
    assert status_of(ask(port, CHUNKED.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n") + b"0\r\n\r\n")) == 200
    head = HEAD + CLOSE + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\nabc"
    assert status_of(ask(port, head)) == 200


def test_a_client_killed_in_its_body_reaches_nothing(port: int) -> None:
    before = threading.active_count()
    for _ in range(20):
        with connect(port) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert status_of(ask(port, HEAD + CLOSE + b"\r\n")) == 200
    assert (reached, threading.active_count()) == ([0], before)


def test_a_refused_connection_closes_and_others_go_on(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert status_of(read_one(connection)) == 200
        connection.sendall(HEAD + b"Content-Length: 99999999\r\n\r\n" + HEAD + b"\r\n")
        assert refused(read_all(connection))[0] == 413  # what follows is the body: no second answer
    assert reached == [0]


def test_the_body_is_handed_over_whole_and_once() -> None:
    """Without a server: pieces in, one piece out, then what the server says next."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
        {"type": "http.disconnect"},
    ]
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "headers": [(b"content-length", b"3")]}
    asyncio.run(LimitBodies(app)(scope, receive, send))
    assert seen == [{"type": "http.request", "body": b"abc", "more_body": False}, {"type": "http.disconnect"}]
