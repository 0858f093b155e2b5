"""A uvicorn server in a thread, and a client of bytes: what no HTTP library would send."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@contextmanager
def served(app: ASGIApp, protocol: type[HttpToolsProtocol] = HttpToolsProtocol, **options: Any) -> Iterator[int]:
    """Serve an application on a free port; the protocol is uvicorn's own by default, for controls."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int, timeout: float = 5) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes, or resets after what it has sent."""
    received = b""
    while True:
        try:
            piece = connection.recv(1 << 16)
        except ConnectionResetError:
            return received
        if not piece:
            return received
        received += piece


def read_one(connection: socket.socket) -> bytes:
    """Read one response, which gives its length, from a connection that stays open."""
    received = b""
    while not (match := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*?\r\n", received)) or len(
        received
    ) < match.end() + int(match[1]):
        piece = connection.recv(1 << 16)
        assert piece
        received += piece
    return received


def ask(port: int, *pieces: bytes, pause: float = 0) -> bytes:
    """Send pieces, stop if the server does, and return all that it sent until it closed."""
    with connect(port) as connection:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        return read_all(connection)


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1]) if response else 0


def refused(response: bytes) -> tuple[int, str]:
    """Return a refusal's status and sentence; it is one JSON object, says that the connection closes, and is alone."""
    head, _, body = response.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"connection"] == b"close"
    assert int(headers[b"content-length"]) == len(body)
    answer = json.loads(body)
    assert list(answer) == ["error"]
    return status_of(response), answer["error"]
