"""What has gone wrong in other servers, as cases.

Triton: CVE-2026-24146 (more outputs asked for than there are), CVE-2026-24173 (numbers that overflow), CVE-2026-24208
(paths out of the folder): NVIDIA's security bulletins, https://www.nvidia.com/en-us/security/. vLLM: CVE-2025-62164
(tensors in place of embeddings), https://github.com/vllm-project/vllm/security/advisories. TorchServe: CVE-2023-43654
("ShellTorch": models loaded by request). Getting in without a token is in `test_cve_tokens.py`.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from conformance.started import Server, binary_request, bytes_tensor, check_refused, text_tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

INFER = "/v2/models/reviews/infer"
MANY = 40_000


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection
        assert connection.post("/predict", json={"texts": ["a"]}).status_code == 200, "the server is not right any more"


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def grpc_request(**tensor: Any) -> Any:
    given = {"name": "text", "datatype": "BYTES", "shape": [1], **tensor}
    request = service_pb2.ModelInferRequest(model_name="reviews")
    request.inputs.append(service_pb2.ModelInferRequest.InferInputTensor(**given))
    request.raw_input_contents.append(bytes_tensor(b"a"))
    return request


def check_refused_over_grpc(stub: Any, request: Any, *codes: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=10)
    assert caught.value.code().name in (codes or ("INVALID_ARGUMENT",))


# Triton CVE-2026-24146


@pytest.mark.parametrize("names", ["the same", "others"])
def test_many_requested_outputs_are_refused_cheaply(
    client: httpx.Client, server: Server, stub: Any, names: str
) -> None:
    outputs = [{"name": "label" if names == "the same" else str(n)} for n in range(MANY)]
    before, started = server.memory_bytes(), time.monotonic()
    check_refused(client.post(INFER, json={"inputs": [text_tensor("a")], "outputs": outputs}), 400, 413, 422)
    request = grpc_request()
    for output in outputs:
        request.outputs.add(name=output["name"])
    check_refused_over_grpc(stub, request, "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    assert time.monotonic() - started < 4
    assert server.memory_bytes() - before < 50e6


def test_many_inputs_are_refused_cheaply(client: httpx.Client) -> None:
    started = time.monotonic()
    tensors = [text_tensor("a", name=str(n)) for n in range(8_000)]
    check_refused(client.post(INFER, json={"inputs": tensors}), 400, 413, 422)
    assert time.monotonic() - started < 2


# Triton CVE-2026-24173

SHAPES = (
    "[9223372036854775808]",
    "[18446744073709551616]",
    "[4294967296, 4294967296]",
    "[4294967297, 4294967295, 1]",
    "[-1, -1]",
    "[1e400]",
    "[true]",
    "[null]",
    "[1" + "0" * 400 + "]",
    "[" + ", ".join(["65536"] * 1000) + "]",
    "{}",
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[:40])
def test_shapes_that_overflow_are_refused(client: httpx.Client, shape: str) -> None:
    tensor = f'{{"name": "text", "datatype": "BYTES", "shape": {shape}'
    check_refused(client.post(INFER, content=f'{{"inputs": [{tensor}, "data": ["a"]}}]}}'), 400, 422)
    start = f'{{"inputs": [{tensor}, "parameters": {{"binary_data_size": 5}}}}]}}'.encode()
    headers = {"Inference-Header-Content-Length": str(len(start))}
    check_refused(client.post(INFER, content=start + bytes_tensor(b"a"), headers=headers), 400, 422)


@pytest.mark.parametrize("shape", [[2**63 - 1], [2**32, 2**32], [-1], [65536] * 1000])
def test_shapes_that_overflow_are_refused_over_grpc(stub: Any, shape: list[int]) -> None:
    check_refused_over_grpc(stub, grpc_request(shape=shape))
    check_refused_over_grpc(stub, grpc_request(name="input_ids", datatype="INT64", shape=shape))


@pytest.mark.parametrize("size", [-1, 4, 6, 2**32 + 5, 2**64 + 5, 5.5, "5", True, None])
def test_binary_sizes_that_lie_are_refused(client: httpx.Client, size: object) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    check_refused(client.post(INFER, **binary_request({"inputs": [tensor]}, bytes_tensor(b"a"))), 400, 422)


@pytest.mark.parametrize("sizes", [(2**64 - 5, 10), (2**63, 2**63 + 5), (6, -1), (5, 5)])
def test_binary_sizes_whose_sum_overflows_are_refused(client: httpx.Client, sizes: tuple[int, int]) -> None:
    tensors = [
        {"name": name, "shape": [1, 1], "datatype": "INT64", "parameters": {"binary_data_size": size}}
        for name, size in zip(("input_ids", "attention_mask"), sizes, strict=True)
    ]
    check_refused(client.post(INFER, **binary_request({"inputs": tensors}, bytes_tensor(b"a"))), 400, 422)


@pytest.mark.parametrize("length", [0, 1, 4, 2**31, 2**32 - 1])
def test_string_lengths_that_lie_are_refused(client: httpx.Client, length: int) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
    data = length.to_bytes(4, "little") + b"ab"
    check_refused(client.post(INFER, **binary_request({"inputs": [tensor]}, data)), 400, 422)


@pytest.mark.parametrize(
    "length",
    [
        *(
            "-1",
            "1",
            "9999",
            "2147483648",
            "18446744073709551616",
            "9" * 400,
            "0x10",
            "1e3",
            "+5",
            "5_0",
            "",
            "a",
            "5, 6",
        ),
        *(" ", "٣"),
    ],
    ids=lambda length: length[:20],
)
def test_header_lengths_that_lie_are_refused(server: Server, length: str) -> None:
    body = b'{"inputs": []}'
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    lie = f"Inference-Header-Content-Length: {length}\r\n\r\n"
    answer = server.exchange(head.encode() + lie.encode() + body)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")


# Triton CVE-2026-24208

UP = (
    "%252e%252e%252fetc%252fpasswd",
    "../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "..%5c..%5cetc%5cpasswd",
)
PLACES = (
    "/page/{}",
    "/{}",
    "/v2/models/{}",
    "/v2/models/reviews/versions/{}",
    "/v2/models/{}/infer",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("up", UP)
def test_no_path_leads_out(server: Server, place: str, up: str) -> None:
    """As bytes, since clients tidy paths up."""
    method = "POST" if place.endswith("infer") else "GET"
    head = f"{method} {place.format(up)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    answer = server.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"root:" not in answer
    assert b"/etc" not in answer, "the refusal repeats what was asked"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "reviews/../reviews", "reviews\0", "", "." * 10_000]
)
def test_no_name_in_a_body_leads_out(client: httpx.Client, stub: Any, name: str) -> None:
    check_refused(client.post("/predict", json={"texts": ["a"], "task": name}), 400, 404, 422)
    check_refused(client.post(INFER, json={"inputs": [text_tensor("a")], "parameters": {"task": name}}), 400, 404, 422)
    request = grpc_request()
    request.model_name = name
    check_refused_over_grpc(stub, request, "NOT_FOUND", "INVALID_ARGUMENT")
    request = grpc_request()
    request.model_version = name
    if name:  # none: any
        check_refused_over_grpc(stub, request, "NOT_FOUND", "INVALID_ARGUMENT")


# vLLM CVE-2025-62164


@pytest.mark.parametrize(
    "name", ["inputs_embeds", "prompt_embeds", "past_key_values.0.key", "leading_states", "position_ids"]
)
@pytest.mark.parametrize("beside", [True, False])
def test_no_tensor_stands_for_embeddings_or_cached_keys(
    client: httpx.Client, stub: Any, name: str, beside: bool
) -> None:
    tensor = {"name": name, "shape": [1, 2, 2], "datatype": "FP32", "data": [0.5] * 4}
    ids = [{"name": n, "shape": [1, 1], "datatype": "INT64", "data": [1]} for n in ("input_ids", "attention_mask")]
    others = [[text_tensor("a")], ids] if beside else [[]]
    for other in others:
        check_refused(client.post(INFER, json={"inputs": [*other, tensor]}), 400)
    header = {"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}]}
    del header["inputs"][0]["data"]
    check_refused(client.post(INFER, **binary_request(header, bytes(16))), 400)
    request = grpc_request()
    request.inputs.add(name=name, datatype="FP32", shape=[1, 2, 2])
    request.raw_input_contents.append(bytes(16))
    check_refused_over_grpc(stub, request)


@pytest.mark.parametrize("ids", [[-1], [2**62], [10**6], [2**31]])
def test_ids_that_the_model_does_not_have_are_refused(client: httpx.Client, ids: list[int]) -> None:
    tensors = [
        {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": ids},
        {"name": "attention_mask", "shape": [1, 1], "datatype": "INT64", "data": [1]},
    ]
    check_refused(client.post(INFER, json={"inputs": tensors}), 400, 422)


# TorchServe CVE-2023-43654, and what other servers let be managed by request

MANAGEMENT = (
    ("POST", "/models?url=http://127.0.0.1:1/x.mar"),
    ("POST", "/workflows?url=http://127.0.0.1:1/x.war"),
    ("PUT", "/models/reviews?min_worker=9"),
    ("DELETE", "/models/reviews"),
    ("DELETE", "/v2/models/reviews"),
    ("PUT", "/v2/models/reviews"),
    ("POST", "/v2/repository/models/reviews/load"),
    ("POST", "/v2/repository/models/reviews/unload"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/reload"),
    ("POST", "/shutdown"),
    ("GET", "/docs"),
    ("GET", "/debug/pprof"),
    ("TRACE", "/v2"),
    ("CONNECT", "/v2"),
)


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
def test_nothing_is_managed_by_request(server: Server, client: httpx.Client, method: str, path: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 4")
    assert client.get("/v2/models/reviews/ready").status_code == 200


def test_only_two_ports_of_this_machine_are_listened_on(server: Server) -> None:
    """HTTP and gRPC, on the loopback address: no port for management, none for another machine."""
    process = Path(f"/proc/{server.process.pid}")
    links = [str(file.readlink()) for file in (process / "fd").iterdir() if file.is_symlink()]
    own = {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in own:
                listening.add(words[1].removeprefix("0000000000000000FFFF0000"))  # IPv4 in IPv6
    ports = {int(url.rpartition(":")[2]) for url in (server.address, server.grpc)}
    assert listening == {f"0100007F:{port:04X}" for port in ports}
