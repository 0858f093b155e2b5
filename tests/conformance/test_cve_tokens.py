"""Getting in without the token: Triton's CVE-2026-24206 and -24207, and Starlette's CVE-2026-48710 ("BadHost").

NVIDIA's bulletins (https://www.nvidia.com/en-us/security/) say of the first two only that authentication can be got
round; the cases are the ways known of other servers: other spellings of a path, other methods, other places for the
token, and another protocol. BadHost: a `Host` that holds a path is taken for the path (https://github.com/Kludex/starlette/security).
"""

import base64
from collections.abc import Iterator

import grpc
import httpx
import pytest
from conformance.started import Server, bytes_tensor, check_refused, text_tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

INFER = "/v2/models/reviews/infer"
LOCKED = (
    ("GET", "/v2/models"),
    ("GET", "/v2/models/reviews"),
    ("GET", "/v2/models/reviews/ready"),
    ("POST", "/v2/repository/index"),
    ("POST", INFER),
    ("POST", "/predict"),
    ("GET", "/metrics"),
)
SECRETS = (b"positive", b"p-tuning", b"Review:", b"ptexport_", b"nv_inference")
"""Of the model and of what is asked of it; none may be in what the unknown are told."""


@pytest.fixture(scope="module")
def client(locked_server: Server) -> Iterator[httpx.Client]:
    with locked_server.client() as connection:
        yield connection


def check_locked(response: httpx.Response) -> None:
    check_refused(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert not any(secret in response.content for secret in SECRETS)


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_without_a_token_nothing_is_told(client: httpx.Client, method: str, path: str) -> None:
    check_locked(client.request(method, path, json={"texts": ["a"]}))


def test_with_the_token_all_is_answered(client: httpx.Client, token: str) -> None:
    right = {"Authorization": f"Bearer {token}"}
    assert client.post("/predict", json={"texts": ["a"]}, headers=right).status_code == 200
    assert client.post(INFER, json={"inputs": [text_tensor("a")]}, headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200


def test_probes_need_no_token(client: httpx.Client) -> None:
    """Kubernetes sends none."""
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        *("", "Bearer", "Bearer ", "Bearer null", "Bearer {token}x", "Bearer x{token}", "Bearer {cut}", "{token}"),
        *(
            "Basic {basic}",
            "Bearer {upper}",
            "Bearer  {token} {token}",
            'Bearer "{token}"',
            "Token {token}",
            "Bearer {token},",
        ),
        *("Bearer \0", "Bearer " + "a" * 4_000),
    ],
    ids=lambda given: given[:30],
)
def test_a_wrong_token_is_none(locked_server: Server, token: str, given: str) -> None:
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    value = given.format(token=token, cut=token[:-1], upper=token.upper(), basic=basic)
    head = f"GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {value}\r\n\r\n"
    assert locked_server.exchange(head.encode())[:12] in (b"HTTP/1.1 401", b"HTTP/1.1 400")


def test_a_token_elsewhere_is_none(client: httpx.Client, token: str) -> None:
    path = "/v2/models/reviews"
    for query in ("token", "access_token", "api_key"):
        check_locked(client.get(path, params={query: token}))
    for header in ("X-Api-Key", "X-Authorization", "Proxy-Authorization", "Cookie", "X-Forwarded-Authorization"):
        check_locked(client.get(path, headers={header: f"Bearer {token}"}))


def test_two_headers_are_not_one_token(locked_server: Server, token: str) -> None:
    """Which of the two counts is not for the caller to choose: refused, or the first, as a proxy would check."""
    for first, second in ((f"Bearer {token}", "Bearer x"), ("Bearer x", f"Bearer {token}")):
        head = "GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        both = f"Authorization: {first}\r\nAuthorization: {second}\r\n\r\n"
        answer = locked_server.exchange((head + both).encode())
        assert answer[:12] in (b"HTTP/1.1 401", b"HTTP/1.1 400") or first == f"Bearer {token}"


SPELLINGS = (
    "//v2/models/reviews",
    "/v2//models/reviews",
    "/./v2/models/reviews",
    "/v2/health/live/../../models/reviews",
    "/v2/health/live/%2e%2e/%2e%2e/models/reviews",
    "/v2/health/live;/../../models/reviews",
    "/V2/models/reviews",
    "/%76%32/models/reviews",
    "/v2/models/reviews/",
    "/v2/models/reviews?/v2/health/live",
    "/v2/models/reviews#/v2/health/live",
    "/v2/models/reviews%23/v2/health/live",
    "/v2/models/reviews%00/v2/health/live",
    "/page/../v2/models/reviews",
    "/page/%2e%2e/v2/models/reviews",
    "http://x/v2/models/reviews",
    "http://x/v2/health/live/../../models/reviews",
    "*",
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "get", "PROPFIND")


@pytest.mark.parametrize("target", SPELLINGS)
@pytest.mark.parametrize("method", METHODS)
def test_no_other_spelling_gets_round_it(locked_server: Server, target: str, method: str) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    answer = locked_server.exchange(head.encode())
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 2", b"HTTP/1.1 3")) or not answer
    assert not any(secret in answer for secret in SECRETS)


@pytest.mark.parametrize(
    "more",
    [
        "X-HTTP-Method-Override: OPTIONS",
        "X-Original-URL: /v2/health/live",
        "X-Rewrite-URL: /v2/health/live",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Prefix: /v2/health/live",
        "Forwarded: for=127.0.0.1",
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Origin: http://127.0.0.1",
        "Expect: 100-continue",
    ],
    ids=lambda more: more[:25],
)
def test_no_other_header_gets_round_it(locked_server: Server, more: str) -> None:
    head = f"GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\n{more}\r\nConnection: close\r\n\r\n"
    answer = locked_server.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 4")
    assert not any(secret in answer for secret in SECRETS)


@pytest.mark.parametrize(
    "host",
    ["x/v2/health/live?", "x/v2/health/live#", "x@y", "[::1", "x:99999999", "", "a b", "x/../v2/health/live", "\xff"],
)
def test_bad_host(locked_server: Server, host: str) -> None:
    head = f"GET /v2/models/reviews HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = locked_server.exchange(head.encode("latin-1"))
    assert answer[:12] in (b"HTTP/1.1 401", b"HTTP/1.1 400")
    assert not any(secret in answer for secret in SECRETS)


def test_a_second_request_on_a_connection_needs_the_token_too(locked_server: Server, token: str) -> None:
    first = f"GET /v2/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    second = "GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = locked_server.exchange((first + second).encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 401" in answer


CALLS = ("ServerMetadata", "ModelReady", "ModelMetadata", "RepositoryIndex", "ModelInfer")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", [None, "Bearer x", "{token}", "Basic {token}"])
def test_grpc_needs_the_token_too(locked_server: Server, token: str, call: str, given: str | None) -> None:
    with grpc.insecure_channel(locked_server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = getattr(service_pb2, f"{call}Request")()
        if call == "ModelInfer":
            request.model_name = "reviews"
            request.inputs.add(name="text", datatype="BYTES", shape=[1])
            request.raw_input_contents.append(bytes_tensor(b"a"))
        elif call.startswith("Model"):
            request.name = "reviews"
        metadata = None if given is None else [("authorization", given.format(token=token))]
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, call)(request, timeout=10, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", f"Bearer {token}")]
        assert getattr(stub, call)(request, timeout=10, metadata=right)
