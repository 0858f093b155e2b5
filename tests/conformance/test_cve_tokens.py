"""Getting in without the token: Triton's CVE-2026-24206 and -24207, and Starlette's CVE-2026-48710 ("BadHost").

NVIDIA's bulletins (https://www.nvidia.com/en-us/security/) say of the first two only that authentication can be got
round. BadHost: a `Host` that holds a path is taken for the path (https://github.com/Kludex/starlette/security). The
ways known of other servers (spellings of a path, methods, headers, hosts) are in tests/runtime/guard/test_auth.py; here
is that the whole server asks for the token, on each of its protocols.
"""

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


def test_without_a_token_nothing_is_told(client: httpx.Client) -> None:
    for method, path in LOCKED:
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


def test_a_token_in_the_address_is_none(client: httpx.Client, token: str) -> None:
    for query in ("token", "access_token", "api_key"):
        check_locked(client.get("/v2/models/reviews", params={query: token}))


@pytest.mark.parametrize(
    "more",
    [
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ],
    ids=["websocket", "h2c"],
)
def test_no_other_protocol_gets_round_it(locked_server: Server, more: str) -> None:
    head = f"GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\n{more}\r\nConnection: close\r\n\r\n"
    answer = locked_server.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert not any(secret in answer for secret in SECRETS)


def test_a_second_request_on_a_connection_needs_the_token_too(locked_server: Server, token: str) -> None:
    first = f"GET /v2/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    second = "GET /v2/models/reviews HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = locked_server.exchange((first + second).encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 401" in answer


CALLS = ("ServerMetadata", "ModelReady", "ModelMetadata", "RepositoryIndex", "ModelInfer")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", [None, "Bearer x"])
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
