"""Requests that a web page makes a browser send to this machine; the application without the check is the control."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from raw import ask, served, status_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ptexport.runtime.guard.connections import Connection
from ptexport.runtime.guard.origins import CheckOrigin, own_names

OWN = ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000", "127.0.0.5:8000"]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil.example\r\nHost: localhost",
    "localhost\r\nHost: evil.example",
    "evil@localhost",
    "localhost@evil",
    "localhost/",
    "localhost:8000:1",
    "localhost,evil.example",
    "localhost.",
    "127.0.0.1.nip.io",
    "127.1",
    "0.0.0.0",
    "127.0.0.6",
    "::1",
    "[::1",
    "",
]
Ports = dict[str, int]


async def secret(_: Request) -> Response:
    return PlainTextResponse("secret")


INNER = Starlette(routes=[Route("/", secret, methods=["GET", "POST"])])


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    apps = {
        "loopback": CheckOrigin(INNER, own_names("127.0.0.5", "127.0.0.5")),
        "public": CheckOrigin(INNER, own_names("0.0.0.0", "0.0.0.0")),
        "none": INNER,
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(served(app, Connection)) for name, app in apps.items()}


def asked(port: int, host: str, headers: str = "", method: str = "GET") -> tuple[int, bool]:
    """Return the status and whether the application was reached."""
    head = f"{method} / HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
    response = ask(port, head.encode())
    return status_of(response), response.endswith(b"secret")


def test_its_own_names_reach_the_server(ports: Ports) -> None:
    assert [host for host in OWN if asked(ports["loopback"], host) != (200, True)] == []


@pytest.mark.parametrize("host", OTHERS)
def test_other_names_do_not(ports: Ports, host: str) -> None:
    assert asked(ports["loopback"], host) == (421, False)
    assert asked(ports["none"], host) != (421, False)


def test_a_request_without_a_host_is_for_nobody(ports: Ports) -> None:
    assert status_of(ask(ports["loopback"], b"GET / HTTP/1.0\r\n\r\n")) == 421


def test_a_server_for_other_machines_has_names_that_it_does_not_know(ports: Ports) -> None:
    assert asked(ports["public"], "box.example:8000") == (200, True)


def test_the_page_of_this_server_may_post(ports: Ports) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        for scheme in ("http", "https"):  # a proxy in front may speak TLS
            assert asked(ports["loopback"], host, f"Origin: {scheme}://{host}\r\n", "POST") == (200, True)
    assert asked(ports["public"], "Box.example:8000", "Origin: http://box.example:8000\r\n", "POST") == (200, True)


@pytest.mark.parametrize("name", ["loopback", "public"])
@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://localhost", "http://localhost:8001", "localhost:8000", "", "file://"],
)
def test_another_page_may_not_post(ports: Ports, name: str, origin: str) -> None:
    headers = f"Origin: {origin}\r\nContent-Type: text/plain\r\n"
    assert asked(ports[name], "localhost:8000", headers, "POST") == (403, False)
    assert asked(ports["none"], "localhost:8000", headers, "POST") == (200, True)
    assert asked(ports[name], "localhost:8000", headers) == (200, True)  # a GET changes nothing, and stays unread


def test_two_origins_are_not_one(ports: Ports) -> None:
    same = "Origin: http://localhost\r\n"
    assert asked(ports["loopback"], "localhost", same + "Origin: null\r\n", "POST") == (403, False)
    assert asked(ports["loopback"], "localhost", same * 2, "POST") == (403, False)


def test_only_what_listens_on_this_machine_alone_has_names() -> None:
    assert own_names("localhost", "127.0.0.1") == own_names("127.0.0.1", "127.0.0.1")
    assert own_names("[::1]", "::1") == {"localhost", "127.0.0.1", "[::1]"}
    assert [own_names(a, a) for a in ("0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0")] == [None] * 4
