"""The cases that Triton and MLServer test their own servers with, in our words; each is named after theirs.

Triton: https://github.com/triton-inference-server/server/tree/main/qa, the folders L0_http (http_test.py,
http_input_size_limit_test.py, http_request_many_chunks.py, nested_json_crash.py), L0_input_validation, L0_infer_zero
and L0_nullchar_string.
What cannot apply here is in `test_mlserver.py`, with why.
"""

import contextlib
import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from conformance.started import (
    TEXTS,
    Server,
    binary_request,
    bytes_tensor,
    check_refused,
    outputs_of,
    serving,
    strings_of,
    text_tensor,
)
from tritonclient.utils import InferenceServerException

from ptexport.runtime import Engine

INFER = "/v2/models/reviews/infer"
RAW = {"Inference-Header-Content-Length": "0"}
OVER_64_MIB = 2**26 + 128


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection
        assert connection.get("/v2/health/live").status_code == 200
        answer = connection.post(INFER, json={"inputs": [text_tensor(*TEXTS)]})
        assert answer.status_code == 200, "the server is not right after all this"


def ask(client: httpx.Client, *tensors: dict[str, Any], **changes: Any) -> httpx.Response:
    return client.post(INFER, json={"inputs": list(tensors), **changes})


def ids_tensor(name: str, *rows: list[int], **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": "INT64", "data": list(rows), **changes}


def labels_of(response: httpx.Response) -> list[str]:
    """Read the labels of an answer, which has them in its JSON, or behind it."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    rest = response.content[length:]
    for output in json.loads(response.content[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if output["name"] == "label":
            labels: list[str] = output["data"] if size is None else strings_of(rest[:size])
            return labels
        rest = rest[size or 0 :]
    raise AssertionError("no labels")


def right(engine: Engine, *texts: str) -> list[str | None]:
    return [prediction.label for prediction in engine.predict(texts)]


# Triton, qa/L0_http/http_test.py


def test_raw_binary_and_byte(client: httpx.Client, engine: Engine) -> None:
    """A header length of 0: the body is the only tensor. One text can be told so, if it is taken at all."""
    response = client.post(INFER, content=b"427", headers=RAW)
    if response.status_code == 200:
        assert labels_of(response) == right(engine, "427")
    else:
        check_refused(response, 400)


@pytest.mark.parametrize("body", [np.ones([2, 2], np.float16).tobytes(), np.arange(24, dtype="<i8").tobytes(), b""])
def test_byte_too_many_elements_and_multi_variable_dimensions_and_multi_inputs(
    client: httpx.Client, body: bytes
) -> None:
    """A raw body that cannot be one text is refused, or at most read as one text; it is never split or guessed at."""
    response = client.post(INFER, content=body, headers=RAW)
    if response.status_code == 200:
        assert len(labels_of(response)) == 1
    else:
        check_refused(response, 400)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_content_encoding_chunked_manually(server: Server, size: int) -> None:
    body = json.dumps({"inputs": [text_tensor(*TEXTS)]}).encode()
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    sent = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    assert server.exchange(head + sent).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("encoding", ["compress", "deflate", "gzip", "chunked, chunked", "x"])
def test_content_encoding_unsupported(server: Server, encoding: str) -> None:
    """Their client refuses to send it; here the server is told, and does not read what it cannot delimit."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: {encoding}\r\n\r\n"
    answer = server.exchange(head.encode() + b"0\r\n\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 4")


def test_descriptive_status_code(llama_bundle: Path) -> None:
    """A full queue is said so: 429 and when to come again (theirs: 503); what was taken is answered."""
    body = {"texts": ["the film was bright " * 10] * 64}
    with (
        serving(llama_bundle, "--max-queue", "64") as server,
        server.client(limits=httpx.Limits(max_connections=24)) as client,
        ThreadPoolExecutor(24) as pool,
    ):
        responses = [pool.submit(client.post, "/predict", json=body) for _ in range(72)]
        refused = [response.result() for response in responses if response.result().status_code != 200]
        assert 0 < len(refused) < 72
        for response in refused:
            check_refused(response, 429)
            assert float(response.headers["retry-after"]) >= 0
        assert client.post("/predict", json=body).status_code == 200


@pytest.mark.parametrize("shape", [[2**4, 2**60 + 2], [2**2, 2**60 + 2]])
@pytest.mark.parametrize("datatype", ["BYTES", "INT64"])
def test_buffer_size_overflow(client: httpx.Client, shape: list[int], datatype: str) -> None:
    """The number of elements, or of bytes, is 32 beyond 2**64."""
    if datatype == "BYTES":
        check_refused(ask(client, text_tensor("a", shape=shape)), 400, 422)
    else:
        tensors = [ids_tensor(name, [1], shape=shape) for name in ("input_ids", "attention_mask")]
        check_refused(ask(client, *tensors), 400, 422)


@pytest.mark.parametrize("shape", [[2, -5], [-2, -2]])
def test_negative_dimensions(client: httpx.Client, shape: list[int]) -> None:
    """Theirs is an error of the server; ours is one of the client."""
    check_refused(ask(client, text_tensor("a", "b", "c", "d", shape=shape)), 400, 422)


@pytest.mark.parametrize(("depth", "statuses"), [(50, (200, 400)), (120, (400,)), (150_000, (400,))])
@pytest.mark.parametrize("datatype", ["BYTES", "INT64"])
def test_json_recursion_depth_limit(client: httpx.Client, depth: int, statuses: tuple[int, ...], datatype: str) -> None:
    value = '"hello"' if datatype == "BYTES" else "1"
    name = "text" if datatype == "BYTES" else "input_ids"
    data = "[" * depth + value + "]" * depth
    tensor = f'{{"name": "{name}", "datatype": "{datatype}", "shape": [1, 1], "data": {data}}}'
    response = client.post(INFER, content=f'{{"inputs": [{tensor}]}}')
    if response.status_code != 200:
        check_refused(response, 400)
    assert response.status_code in statuses


def test_duplicate_output_names(client: httpx.Client) -> None:
    check_refused(ask(client, text_tensor("a"), outputs=[{"name": "label"}, {"name": "label"}]), 400)


# Triton, qa/L0_http/http_request_many_chunks.py: a million chunks of one byte there, 300,000 here


@pytest.mark.parametrize(
    "path",
    [
        INFER,
        "/predict",
        "/v2/repository/index",
        "/v2/repository/models/reviews/load",
        "/v2/logging",
        "/v2/models/reviews/generate",
    ],
)
def test_many_chunks(server: Server, path: str) -> None:
    more = f"Transfer-Encoding: chunked\r\n{next(iter(RAW))}: 0\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}"
    started = time.monotonic()
    answer = server.exchange(head.encode() + b"\r\n" + b"1\r\nA\r\n" * 300_000 + b"0\r\n\r\n")
    assert answer[:10] == b"HTTP/1.1 4" or (answer[:10] == b"HTTP/1.1 2" and path in (INFER, "/v2/repository/index"))
    assert time.monotonic() - started < 20


# Triton, qa/L0_http/http_input_size_limit_test.py


@pytest.mark.parametrize("kind", ["raw binary", "json"])
def test_default_limit_rejection(server: Server, kind: str) -> None:
    """64 MiB is far over the limit here: refused by its length alone, before a byte of it has come."""
    more = f"{next(iter(RAW))}: 0\r\n" if kind == "raw binary" else "Content-Type: application/json\r\n"
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}Content-Length: {OVER_64_MIB}\r\n\r\n"
    )
    started = time.monotonic()
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 2


def test_default_limit_rejection_of_a_body_that_does_not_say_its_length(server: Server) -> None:
    before = server.memory_bytes()
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(ConnectionError):  # it hangs up, which is right
            for _ in range(64):
                connection.sendall(chunk)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(13) == b"HTTP/1.1 413 "
    assert server.memory_bytes() - before < 32 * 2**20


def test_under_the_limit_is_answered(client: httpx.Client, engine: Engine) -> None:
    text = "the film was bright " * 5_000
    assert labels_of(ask(client, text_tensor(text))) == right(engine, text)
    data = bytes_tensor(text.encode())
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    assert labels_of(client.post(INFER, **binary_request({"inputs": [tensor]}, data))) == right(engine, text)


def test_a_compressed_body_is_refused_or_counted_as_it_is_uncompressed(client: httpx.Client) -> None:
    bomb = gzip.compress(b'{"inputs": [' + b" " * OVER_64_MIB + b"]}")
    check_refused(client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}), 413, 415)


def test_numbers_that_grow_when_they_are_read_are_refused(client: httpx.Client) -> None:
    """Two bytes of JSON are eight of INT64: one row of 200,000 ids is longer than any model here takes."""
    row = [1] * 200_000
    tensors = [ids_tensor(name, row) for name in ("input_ids", "attention_mask")]
    check_refused(ask(client, *tensors), 400, 413, 422)


# Triton, qa/L0_input_validation


def test_input_validation_required_empty(client: httpx.Client) -> None:
    check_refused(ask(client), 400)


def test_input_validation_required_missing(client: httpx.Client) -> None:
    check_refused(ask(client, ids_tensor("attention_mask", [1, 1])), 400)


def test_input_validation_none_of_them_twice_and_none_beside_the_text(client: httpx.Client) -> None:
    check_refused(ask(client, text_tensor("a"), text_tensor("b")), 400)
    check_refused(ask(client, text_tensor("a"), ids_tensor("input_ids", [1])), 400)


@pytest.mark.parametrize("changes", [{"shape": [2]}, {"shape": [0]}, {"shape": ["1"]}, {"shape": [1.5]}, {"shape": 1}])
def test_input_shape_validation(client: httpx.Client, changes: dict[str, Any]) -> None:
    check_refused(ask(client, text_tensor("a", **changes)), 400)


@pytest.mark.parametrize("length", [-1, 1])
def test_input_byte_size_mismatch(client: httpx.Client, server: Server, length: int) -> None:
    """More or fewer bytes than the shape says, over both protocols."""
    data = np.arange(2 + length, dtype="<i8").tobytes()
    header = {
        "inputs": [
            {"name": name, "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": len(data)}}
            for name in ("input_ids", "attention_mask")
        ]
    }
    check_refused(client.post(INFER, **binary_request(header, data, data)), 400)
    tensors = []
    for name in ("input_ids", "attention_mask"):
        tensor = triton_grpc.InferInput(name, [1, 2 + length], "INT64")
        tensor.set_data_from_numpy(np.ones((1, 2 + length), np.int64))
        tensor.set_shape([1, 2])
        tensors.append(tensor)
    with triton_grpc.InferenceServerClient(server.grpc) as connection:
        with pytest.raises(InferenceServerException) as caught:
            connection.infer("reviews", tensors)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


# Triton, qa/L0_infer_zero


@pytest.mark.parametrize("shape", [[0], [0, 1]])
@pytest.mark.parametrize("binary", [True, False])
def test_zero(client: httpx.Client, shape: list[int], binary: bool) -> None:
    """No texts get no answers (test_oo1, test_hh1_1)."""
    tensor = text_tensor(shape=shape)
    if binary:
        tensor = {key: value for key, value in tensor.items() if key != "data"} | {
            "parameters": {"binary_data_size": 0}
        }
        response = client.post(INFER, **binary_request({"inputs": [tensor]}))
    else:
        response = ask(client, tensor)
    assert response.status_code == 200, response.text
    outputs = outputs_of(response.json())
    assert (outputs["label"]["shape"], outputs["label"]["data"]) == ([0], [])
    assert (outputs["probabilities"]["shape"], outputs["probabilities"]["data"]) == ([0, 2], [])


@pytest.mark.parametrize("shape", [[1, 0], [0, 0], [3, 0]])
def test_zero_columns(client: httpx.Client, shape: list[int]) -> None:
    """A text is one element (test_hh1_0, test_hh1_2): rows of none are refused, or are no rows."""
    response = ask(client, text_tensor(shape=shape))
    if response.status_code == 200:
        assert labels_of(response) == []
        assert shape[0] == 0
    else:
        check_refused(response, 400)


def test_zero_ids(client: httpx.Client) -> None:
    for shape in ([0, 0], [1, 0]):
        tensors = [ids_tensor(name, [1], shape=shape, data=[]) for name in ("input_ids", "attention_mask")]
        response = ask(client, *tensors)
        if response.status_code == 200:
            assert labels_of(response) == []
        else:
            check_refused(response, 400)


# Triton, qa/L0_nullchar_string


@pytest.mark.parametrize("text", ["abc\0def", "\0", "\0\0a"])
def test_a_null_character_is_a_character(client: httpx.Client, engine: Engine, text: str) -> None:
    assert labels_of(ask(client, text_tensor(text))) == right(engine, text)
    expected = engine.predict([text])[0].probabilities
    probabilities = outputs_of(ask(client, text_tensor(text)).json())["probabilities"]["data"]
    assert probabilities == pytest.approx(list(expected.values()), abs=1e-5)
