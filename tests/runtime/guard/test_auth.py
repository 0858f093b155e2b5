"""The token, and the ways around it that other servers left open (Triton CVE-2026-24206, -24207, BadHost)."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from raw import ask, served, status_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ptexport.runtime.errors import ServeError
from ptexport.runtime.guard.auth import (
    MIN_CHARACTERS,
    OPEN_PATHS,
    SENTENCE,
    RequireToken,
    is_token,
    read_token,
    token_of_metadata,
)
from ptexport.runtime.guard.connections import Connection

TOKEN = b"0123456789abcdef"
RIGHT = b"Authorization: Bearer 0123456789abcdef\r\n"
END = b"Host: a\r\nConnection: close\r\n"


async def secret(_: Request) -> Response:
    return PlainTextResponse("secret")


async def public(_: Request) -> Response:
    return PlainTextResponse("public")


@pytest.fixture(scope="module")
def inner(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    page = tmp_path_factory.mktemp("page")
    (page / "page.css").write_text("public", encoding="utf-8")
    (page / "deep").mkdir()
    (page / "deep" / "page.css").write_text("secret", encoding="utf-8")
    (page.parent / "outside.css").write_text("secret", encoding="utf-8")
    routes = [
        *[Route(path, public) for path in OPEN_PATHS],
        Mount("/page", StaticFiles(directory=page)),
        Route("/{path:path}", secret, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]),
    ]
    return Starlette(routes=routes)


@pytest.fixture(scope="module")
def unlocked(inner: Starlette) -> Iterator[int]:
    """The control: the application without the middleware."""
    with served(inner, Connection) as port:
        yield port


@pytest.fixture(scope="module")
def port(inner: Starlette) -> Iterator[int]:
    with served(RequireToken(inner, TOKEN), Connection) as port:
        yield port


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/page/page.css"])
def test_probes_and_the_page_are_open(port: int, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert httpx.request(method, f"http://127.0.0.1:{port}{path}").status_code == 200
    for method in ("POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        assert httpx.request(method, f"http://127.0.0.1:{port}{path}").status_code == 401


def test_a_refusal_says_what_to_send(port: int) -> None:
    response = httpx.get(f"http://127.0.0.1:{port}/v2/models")
    assert (response.status_code, response.json()) == (401, {"error": SENTENCE})
    assert response.headers["www-authenticate"] == "Bearer"
    assert "connection" not in response.headers  # it may go on, with a token


@pytest.mark.parametrize(
    "header",
    [
        RIGHT,
        RIGHT.replace(b"Authorization", b"authorization"),
        RIGHT.replace(b"Bearer", b"bearer"),
        RIGHT.replace(b"Bearer ", b"BEARER  "),
        RIGHT.replace(b"\r\n", b"  \r\n"),
    ],
)
def test_the_token_opens_everything(port: int, header: bytes) -> None:
    assert ask(port, b"GET /v2/models HTTP/1.1\r\n" + header + END + b"\r\n").endswith(b"secret")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Authorization:\r\n",
        b"Authorization: Bearer\r\n",
        b"Authorization: Bearer \r\n",
        b"Authorization: 0123456789abcdef\r\n",
        b"Authorization: Basic 0123456789abcdef\r\n",
        b"Authorization: Bearer 0123456789abcde\r\n",
        b"Authorization: Bearer 0123456789abcdef0\r\n",
        b"Authorization: Bearer 0123456789ABCDEF\r\n",
        b"Authorization: Bearer 0123456789abcdef,\r\n",
        b'Authorization: Bearer "0123456789abcdef"\r\n',
        b"Authorization: Bearer\t0123456789abcdef\r\n",
        b"Authorization: Bearer x 0123456789abcdef\r\n",
        b"Authorization: Bearer\xc2\xa00123456789abcdef\r\n",
        "Authorization: Bearer \uff10123456789abcdef\r\n".encode(),
        RIGHT + RIGHT,
        RIGHT + b"Authorization: Bearer x\r\n",
        b"Authorization: Bearer x\r\n" + RIGHT,
        b"Proxy-" + RIGHT,
        b"X-" + RIGHT,
        b"X-Api-Key: 0123456789abcdef\r\n",
        b"X-Forwarded-" + RIGHT,
        b"Cookie: Authorization=Bearer 0123456789abcdef\r\n",
        b"Triton-" + RIGHT,
    ],
)
def test_other_headers_do_not_open(port: int, header: bytes) -> None:
    response = ask(port, b"GET /v2/models HTTP/1.1\r\n" + header + END + b"\r\n")
    assert (status_of(response), b"secret" in response) == (401, False)


TARGETS = [
    "//v2/models",
    "//",
    "///v2/health/live",
    "/v2/health/live/",
    "/v2/health/live/../models",
    "/v2/health/live/../../models",
    "/v2/health/live/%2e%2e/%2e%2e/models",
    "/v2/health/live%2f..%2fmodels",
    "/v2/health/live%2F",
    "/v2/health/live;/models",
    "/v2/health/live%00",
    "/v2/health/live%0a",
    "/v2/health/live%20",
    "/v2/health/live%23/models",
    "/v2/health/live%3f/models",
    "/V2/Health/Live",
    "/v2/./health/live",
    "/v2\\health\\live",
    "/./",
    "/%2e/",
    "/..",
    "/v2/models?/v2/health/live",
    "/v2/models?x=/",
    "/v2/models#/v2/health/live",
    "/v2/models/%2e%2e/health/live",
    "/v2/models/v2/health/live",
    "http://a/v2/models",
    "http://a/v2/health/live/../models",
    "http://a//v2/health/live",
    "http://user@a:80/v2/models",
    "/page/",
    "/page",
    "/page//page.css",
    "/page/deep/page.css",
    "/page/deep%2fpage.css",
    "/page/../v2/models",
    "/page/%2e%2e/v2/models",
    "/page/..%2fv2/models",
    "/page/..%2foutside.css",
    "/page/%2e%2e%2foutside.css",
    "/page/.page.css",
    "/page/page.css/../../v2/models",
    "/page/page.css%0a",
    "/page/%EF%BC%8E%EF%BC%8E",
    "/%EF%BC%8Fv2/models",
    "*",
]


@pytest.mark.parametrize("target", TARGETS)
def test_other_spellings_of_a_path_do_not_open(port: int, target: str) -> None:
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        response = ask(port, method + b" " + target.encode() + b" HTTP/1.1\r\n" + END + b"\r\n")
        assert (status_of(response), b"secret" in response, b"public" in response) == (401, False, False)


HOSTS = [
    b"a/v2/health/live?",
    b"a/v2/health/live#",
    b"a/?",
    b"localhost",
    b"127.0.0.1",
    b"",
    b"@a",
    b"a\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Prefix: /v2/health/live",
    b"a\r\nX-Original-URL: /v2/health/live\r\nX-Rewrite-URL: /v2/health/live",
    b"a\r\nX-HTTP-Method-Override: GET",
    b"a\r\nForwarded: for=127.0.0.1",
    b"a\r\nOrigin: http://127.0.0.1",
]


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_and_no_proxy_header_opens(port: int, unlocked: int, host: bytes) -> None:
    request = b"GET /v2/models HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    response = ask(port, request)
    assert (status_of(response), b"secret" in response) == (401, False)
    assert ask(unlocked, request).endswith(b"secret")


def test_a_refused_body_is_not_another_request(port: int) -> None:
    hidden = b"GET /v2/models HTTP/1.1\r\n" + RIGHT + END + b"\r\n"
    response = ask(port, b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden)
    assert (status_of(response), response.count(b"HTTP/1.1 "), b"secret" in response) == (401, 1, False)


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_token_file_is_one_line(tmp_path: Path) -> None:
    for number, content in enumerate((TOKEN, TOKEN + b"\n", TOKEN + b"\r\n")):
        assert read_token(write(tmp_path / f"token{number}", content, 0o400)) == TOKEN


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"", 0o600, "got 0 lines, need one line with the token; write only the token"),
        (TOKEN + b"\n\n", 0o600, "got 2 lines, need one line"),
        (b"0123456789abcde", 0o600, "got a token of 15 characters, need at least 16; run openssl rand -hex 32"),
        (b"0123456789 abcdef", 0o600, "got a token with other characters, need printable ASCII without spaces"),
        ("0123456789abcdéf".encode(), 0o600, "got a token with other characters"),
        (TOKEN, 0o644, "got the mode 644, need a token that others cannot read; run chmod 600"),
        (TOKEN, 0o604, "got the mode 604, need"),
        (TOKEN, 0o620, "got the mode 620, need"),
        (TOKEN, 0o602, "got the mode 602, need"),
        (b"x" * 70_000, 0o600, "got more than 65536 bytes, need a token; check the path"),
    ],
)
def test_a_bad_token_file_is_refused(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    path = write(tmp_path / "token", content, mode)
    with pytest.raises(ServeError) as error:
        read_token(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert TOKEN.decode() not in str(error.value)


def test_a_group_may_read_what_root_owns(tmp_path: Path) -> None:
    """Kubernetes and systemd hand secrets to services so."""
    path = write(tmp_path / "token", TOKEN, 0o440)
    if path.stat().st_uid == 0:
        assert read_token(path) == TOKEN
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
    if stat.S_IMODE(path.stat().st_mode) == 0o440 and path.stat().st_uid != 0:
        with pytest.raises(ServeError, match="got the mode 440"):
            read_token(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ServeError, match="got no regular file"):
        read_token(tmp_path / "pipe")  # and does not wait for a writer
    with pytest.raises(ServeError, match=r"cannot be read \(No such file or directory\)"):
        read_token(tmp_path / "missing")
    with pytest.raises(ServeError, match="Is a directory"):
        read_token(tmp_path)


def test_a_call_over_grpc_carries_the_token_in_its_metadata() -> None:
    right = ("authorization", "Bearer 0123456789abcdef")
    for metadata, expected in (
        ([("x", "y"), right], True),
        ([("authorization", b"bearer 0123456789abcdef")], True),
        ([], False),
        ([right, right], False),
        ([("authorization", "Bearer 0123456789abcde\uff46")], False),
        ([("authorization-bin", b"Bearer 0123456789abcdef")], False),
    ):
        assert is_token(token_of_metadata(metadata), TOKEN) == expected
    assert len(TOKEN) == MIN_CHARACTERS
