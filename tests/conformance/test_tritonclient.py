"""NVIDIA's client, `tritonclient` 2.73, at its defaults: binary tensors both ways, over HTTP and gRPC.

Follows the client as published on PyPI (https://pypi.org/project/tritonclient/) and the extensions it speaks:
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

import asyncio
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from conformance.started import TEXTS, Server
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ptexport.runtime import Engine, Prediction
from ptexport.runtime.bundle.folder import TOKENIZER
from ptexport.runtime.engine.text_encoder import TextEncoder

Client = Any
ARRAYS: dict[str, Callable[[], NDArray[Any]]] = {
    "strings": lambda: np.array(TEXTS, dtype=object),
    "bytes": lambda: np.array([text.encode() for text in TEXTS], dtype=object),
    "fixed bytes": lambda: np.array([text.encode() for text in TEXTS]),
    "a column": lambda: np.array(TEXTS, dtype=object).reshape(-1, 1),
}


@pytest.fixture(scope="module", params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def library(protocol: str) -> ModuleType:
    return {"http": triton_http, "grpc": triton_grpc}[protocol]


@pytest.fixture(scope="module")
def client(protocol: str, library: ModuleType, server: Server) -> Iterator[Client]:
    with library.InferenceServerClient(server.address if protocol == "http" else server.grpc) as connection:
        yield connection


def text_input(library: ModuleType, array: NDArray[Any], **how: Any) -> Any:
    tensor = library.InferInput("text", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array, **how)
    return tensor


def labels_of(result: Any) -> list[str]:
    return [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").reshape(-1)]


def check_predictions(result: Any, expected: list[Prediction]) -> None:
    """The client read what the engine predicts."""
    assert labels_of(result) == [prediction.label for prediction in expected]
    right = [list(prediction.probabilities.values()) for prediction in expected]
    np.testing.assert_allclose(result.as_numpy("probabilities"), right, atol=1e-5)
    assert result.as_numpy("probabilities").dtype == np.float32


def status_of(error: InferenceServerException) -> str:
    """Return `404`, or gRPC's name of it."""
    return str(error.status()).removeprefix("StatusCode.")


def attempt(call: Callable[[], Any]) -> tuple[Any, InferenceServerException | None]:
    """Return a call's result, or its error."""
    try:
        return call(), None
    except InferenceServerException as e:
        return None, e


def check_not_ready(client: Client, *model: str) -> None:
    """Triton says over gRPC that an unknown model is not ready, KServe that it is not found."""
    ready, error = attempt(lambda: client.is_model_ready(*model))
    assert not ready
    assert error is None or status_of(error) == "NOT_FOUND"


def test_it_is_live_and_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("reviews")
    check_not_ready(client, "nobody")


def test_metadata_says_what_the_server_can_do(client: Client, protocol: str) -> None:
    said = client.get_server_metadata(**({"as_json": True} if protocol == "grpc" else {}))
    assert said["name"] == "ptexport"
    assert said["version"]
    assert protocol == "grpc" or "binary_tensor_data" in said["extensions"]


def test_metadata_of_the_model_says_its_tensors_and_version(client: Client, protocol: str) -> None:
    said = client.get_model_metadata("reviews", **({"as_json": True} if protocol == "grpc" else {}))
    tensors = {tensor["name"]: (tensor["datatype"], list(map(int, tensor["shape"]))) for tensor in said["inputs"]}
    assert tensors["text"] == ("BYTES", [-1])
    outputs = {tensor["name"]: (tensor["datatype"], list(map(int, tensor["shape"]))) for tensor in said["outputs"]}
    assert outputs["label"] == ("BYTES", [-1])
    assert outputs["probabilities"] == ("FP32", [-1, 2])
    (version,) = said["versions"]
    assert client.is_model_ready("reviews", version)
    assert client.get_model_metadata("reviews", version)
    check_not_ready(client, "reviews", "999")


def test_the_repository_lists_the_model(client: Client, protocol: str) -> None:
    said = client.get_model_repository_index(**({"as_json": True} if protocol == "grpc" else {}))
    models = said["models"] if protocol == "grpc" else said
    assert [(model["name"], model["state"]) for model in models] == [("reviews", "READY")]


@pytest.mark.parametrize("kind", ARRAYS)
def test_texts_are_answered_as_the_engine_does(client: Client, library: ModuleType, engine: Engine, kind: str) -> None:
    result = client.infer("reviews", [text_input(library, ARRAYS[kind]())])
    check_predictions(result, engine.predict(TEXTS))


def test_requested_outputs_come_and_no_others(client: Client, library: ModuleType, engine: Engine) -> None:
    outputs = [library.InferRequestedOutput("logits"), library.InferRequestedOutput("label")]
    result = client.infer("reviews", [text_input(library, ARRAYS["strings"]())], outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("logits"), engine.logits(TEXTS), atol=1e-5)
    assert labels_of(result) == [prediction.label for prediction in engine.predict(TEXTS)]
    assert result.as_numpy("probabilities") is None


def test_tensors_may_be_json(server: Server, engine: Engine) -> None:
    tensor = text_input(triton_http, ARRAYS["a column"](), binary_data=False)
    outputs = [triton_http.InferRequestedOutput(name, binary_data=False) for name in ("label", "probabilities")]
    with triton_http.InferenceServerClient(server.address) as client:
        check_predictions(client.infer("reviews", [tensor], outputs=outputs), engine.predict(TEXTS))


@pytest.mark.parametrize("binary", ["text", "output"])
def test_one_side_alone_may_be_binary(server: Server, engine: Engine, binary: str) -> None:
    tensor = text_input(triton_http, ARRAYS["strings"](), binary_data=binary == "text")
    names = ("label", "probabilities")
    outputs = [triton_http.InferRequestedOutput(name, binary_data=binary == "output") for name in names]
    with triton_http.InferenceServerClient(server.address) as client:
        check_predictions(client.infer("reviews", [tensor], outputs=outputs), engine.predict(TEXTS))


def test_one_output_may_be_binary_beside_one_of_json(server: Server, engine: Engine) -> None:
    outputs = [
        triton_http.InferRequestedOutput("label", binary_data=False),
        triton_http.InferRequestedOutput("probabilities", binary_data=True),
    ]
    with triton_http.InferenceServerClient(server.address) as client:
        tensor = text_input(triton_http, ARRAYS["strings"]())
        check_predictions(client.infer("reviews", [tensor], outputs=outputs), engine.predict(TEXTS))


def test_a_version_may_be_named(client: Client, library: ModuleType, protocol: str, engine: Engine) -> None:
    said = client.get_model_metadata("reviews", **({"as_json": True} if protocol == "grpc" else {}))
    tensor = text_input(library, ARRAYS["strings"]())
    result = client.infer("reviews", [tensor], model_version=said["versions"][0])
    check_predictions(result, engine.predict(TEXTS))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("reviews", [tensor], model_version="999")
    assert status_of(caught.value) in ("404", "NOT_FOUND")


def test_the_request_id_comes_back(client: Client, library: ModuleType, protocol: str) -> None:
    result = client.infer("reviews", [text_input(library, ARRAYS["strings"]())], request_id="order 66")
    answer = result.get_response()
    assert (answer.id if protocol == "grpc" else answer["id"]) == "order 66"


def test_a_timeout_is_in_microseconds(client: Client, library: ModuleType, engine: Engine) -> None:
    tensor = text_input(library, ARRAYS["strings"]())
    check_predictions(client.infer("reviews", [tensor], timeout=20_000_000), engine.predict(TEXTS))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("reviews", [tensor], timeout=1)
    assert status_of(caught.value) in ("504", "DEADLINE_EXCEEDED")


def test_classification_is_answered_or_refused_by_a_sentence(client: Client, library: ModuleType) -> None:
    outputs = [library.InferRequestedOutput("probabilities", class_count=1)]
    tensor = text_input(library, ARRAYS["strings"]())
    result, error = attempt(lambda: client.infer("reviews", [tensor], outputs=outputs))
    if error is not None:
        assert status_of(error) in ("400", "INVALID_ARGUMENT", "UNIMPLEMENTED")
        assert "classification" in (error.message() or "")
    else:  # value:index:label
        first = result.as_numpy("probabilities").reshape(-1)[0].decode().split(":")
        assert first[2] in ("positive", "negative")


def encoded(bundle: Path) -> dict[str, NDArray[np.int64]]:
    """Return the ids that the engine would run, without token types."""
    encoder = TextEncoder.from_json((bundle / TOKENIZER).read_text(encoding="utf-8"), fields=["text"])
    return {name: array for name, array in TextEncoder.pad(encoder.encode(TEXTS)).items() if name != "token_type_ids"}


def test_token_ids_are_answered_like_their_texts(
    client: Client, library: ModuleType, llama_bundle: Path, engine: Engine
) -> None:
    tensors = []
    for name, array in encoded(llama_bundle).items():
        tensor = library.InferInput(name, list(array.shape), "INT64")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    check_predictions(client.infer("reviews", tensors), engine.predict(TEXTS))


ERRORS: dict[str, tuple[tuple[str, str], Callable[[Client, ModuleType], object]]] = {
    "an unknown model": (
        ("404", "NOT_FOUND"),
        lambda client, library: client.infer("nobody", [text_input(library, ARRAYS["strings"]())]),
    ),
    "an unknown input": (
        ("400", "INVALID_ARGUMENT"),
        lambda client, library: client.infer("reviews", [_ids(library, "pixels")]),
    ),
    "another datatype": (
        ("400", "INVALID_ARGUMENT"),
        lambda client, library: client.infer("reviews", [_ids(library, "text")]),
    ),
    "an unknown output": (
        ("400", "INVALID_ARGUMENT"),
        lambda client, library: client.infer(
            "reviews",
            [text_input(library, ARRAYS["strings"]())],
            outputs=[library.InferRequestedOutput("boxes")],
        ),
    ),
    "bytes that are not UTF-8": (
        ("400", "INVALID_ARGUMENT"),
        lambda client, library: client.infer("reviews", [text_input(library, np.array([b"\xff\xfe"]))]),
    ),
    "metadata of an unknown model": (
        ("404", "NOT_FOUND"),
        lambda client, library: client.get_model_metadata("nobody"),
    ),
}


def _ids(library: ModuleType, name: str) -> Any:
    tensor = library.InferInput(name, [1, 2], "INT64")
    tensor.set_data_from_numpy(np.array([[1, 2]], dtype=np.int64))
    return tensor


@pytest.mark.parametrize("case", ERRORS)
def test_errors_have_a_message_and_a_status(client: Client, library: ModuleType, case: str) -> None:
    statuses, ask = ERRORS[case]
    with pytest.raises(InferenceServerException) as caught:
        ask(client, library)
    assert status_of(caught.value) in statuses
    assert ": " in (caught.value.message() or "")


UNOFFERED: dict[str, Callable[[Client], object]] = {
    "load_model": lambda client: client.load_model("reviews"),
    "unload_model": lambda client: client.unload_model("reviews"),
    "system shared memory": lambda client: client.register_system_shared_memory("x", "/x", 8),
    "status of shared memory": lambda client: client.get_system_shared_memory_status(),
    "trace settings": lambda client: client.update_trace_settings(settings={"trace_file": "/tmp/x"}),
    "log settings": lambda client: client.update_log_settings({"log_file": "/tmp/x"}),
}


@pytest.mark.parametrize("call", UNOFFERED)
def test_what_is_not_offered_is_refused(client: Client, call: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        UNOFFERED[call](client)
    assert status_of(caught.value) in ("404", "405", "UNIMPLEMENTED")
    assert client.is_model_ready("reviews")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_answered_or_refused_by_a_sentence(
    server: Server, engine: Engine, algorithm: str
) -> None:
    tensor = text_input(triton_http, ARRAYS["strings"]())
    with triton_http.InferenceServerClient(server.address) as client:
        result, error = attempt(lambda: client.infer("reviews", [tensor], request_compression_algorithm=algorithm))
        if error is not None:
            assert error.status() == "415"
        else:
            check_predictions(result, engine.predict(TEXTS))
        result = client.infer("reviews", [tensor], response_compression_algorithm=algorithm)
        check_predictions(result, engine.predict(TEXTS))


def test_http_answers_many_requests_at_once(server: Server, engine: Engine) -> None:
    tensor = text_input(triton_http, ARRAYS["strings"]())
    with triton_http.InferenceServerClient(server.address, concurrency=4) as client:
        requests = [client.async_infer("reviews", [tensor], request_id=str(n)) for n in range(12)]
        for n, request in enumerate(requests):
            result = request.get_result()
            assert result.get_response()["id"] == str(n)
            check_predictions(result, engine.predict(TEXTS))


def test_grpc_calls_back(server: Server, engine: Engine) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tensor = text_input(triton_grpc, ARRAYS["strings"]())
        client.async_infer("reviews", [tensor], callback=lambda result, error: answers.put((result, error)))
        result, error = answers.get(timeout=20)
    assert error is None
    check_predictions(result, engine.predict(TEXTS))


def test_the_asyncio_clients_are_answered(server: Server, engine: Engine) -> None:
    async def ask(library: ModuleType, address: str) -> list[Any]:
        async with library.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("reviews")
            tensor = text_input(library, ARRAYS["strings"]())
            return list(await asyncio.gather(*(client.infer("reviews", [tensor]) for _ in range(3))))

    for library, address in ((triton_http_aio, server.address), (triton_grpc_aio, server.grpc)):
        for result in asyncio.run(ask(library, address)):
            check_predictions(result, engine.predict(TEXTS))


def test_a_stream_is_answered_or_refused_at_once(server: Server, engine: Engine) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        # If the refusal has come already, this raises, and the callback has been told why.
        attempt(lambda: client.async_stream_infer("reviews", [text_input(triton_grpc, ARRAYS["strings"]())]))
        result, error = answers.get(timeout=20)
        client.stop_stream()
    if error is not None:
        assert status_of(error) == "UNIMPLEMENTED"
    else:
        check_predictions(result, engine.predict(TEXTS))


def test_each_task_of_a_bundle_is_a_model(server_of_two: Server, both_bundle: Path) -> None:
    with Engine.open(both_bundle) as engine, triton_http.InferenceServerClient(server_of_two.address) as client:
        assert {model["name"] for model in client.get_model_repository_index()} >= {"tone", "mood"}
        for task in ("tone", "mood"):
            result = client.infer(task, [text_input(triton_http, ARRAYS["strings"]())])
            check_predictions(result, engine.predict(TEXTS, task=task))
