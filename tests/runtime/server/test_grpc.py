"""The service over gRPC, asked by a plain channel; what published clients do: tests/conformance."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Kept, service_of

from ptexport.runtime import Engine
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.errors import ServeError
from ptexport.runtime.guard.limits import MAX_BODY_BYTES
from ptexport.runtime.server.address import Listening
from ptexport.runtime.serving.tensors import Tensor, binary

grpc = pytest.importorskip("grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")
stubs = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
from ptexport.runtime.server.grpc_service import start_grpc  # noqa: E402 - needs the packages above

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
TEXTS = ["the film was bright", "", "Владивосток\0"]
TOKEN = b"0123456789abcdef"


@contextmanager
def started(*engines: Engine, observer: Kept | None = None, is_ready: bool = True, **more: Any) -> Iterator[int]:
    """Serve in a thread while the block runs; gives the port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, loop).result(30)

    at = Listening(host="127.0.0.1", port=0, grpc_port=0, **more)
    try:
        server = run(start_grpc(service_of(*engines), observer or Kept(), at, is_ready=lambda: is_ready))
        yield server.port
        run(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def stub_of(port: int, credentials: Any = None, options: Any = ()) -> Iterator[Any]:
    """Connect to a server of this machine."""
    where = f"127.0.0.1:{port}"
    channel = (
        grpc.insecure_channel(where, options)
        if credentials is None
        else grpc.secure_channel(where, credentials, options)
    )
    with channel:
        yield stubs.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(GOLDEN / "reviews")


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def stub(engine: Engine, kept: Kept) -> Iterator[Any]:
    with started(engine, observer=kept) as port, stub_of(port) as connected:
        yield connected


def question(texts: list[str], model: str = "reviews", *, raw: bool = False, **more: Any) -> Any:
    made = pb.ModelInferRequest(model_name=model, **more)
    tensor = made.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    if raw:
        made.raw_input_contents.append(binary(Tensor("text", "BYTES", [len(texts)], texts)))
    else:
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return made


def refused(ask: Callable[[], Any], code: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    assert (caught.value.code(), message in caught.value.details()) == (grpc.StatusCode[code], True), caught.value


def test_health_and_metadata(stub: Any, engine: Engine) -> None:
    version = engine.manifest.digest[:12]
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "ptexport"
    assert stub.ModelReady(pb.ModelReadyRequest(name="reviews", version=version)).ready
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="reviews"))
    assert (model.name, list(model.versions), model.platform) == ("reviews", [version], "onnxruntime_onnx")
    assert [(i.name, i.datatype, list(i.shape)) for i in model.inputs] == [("text", "BYTES", [-1])]
    assert [o.name for o in model.outputs] == ["label", "probabilities"]
    (entry,) = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert (entry.name, entry.version, entry.state) == ("reviews", version, "READY")


@pytest.mark.parametrize("raw", [False, True])
def test_infer_answers_as_the_engine_does(raw: bool, stub: Any, engine: Engine, kept: Kept) -> None:
    need = engine.predict(TEXTS)
    answer = stub.ModelInfer(question(TEXTS, id="7", raw=raw), metadata=[("x-request-id", "seven")])
    assert (answer.model_name, answer.model_version, answer.id) == ("reviews", engine.manifest.digest[:12], "7")
    label, scores = answer.outputs
    assert (label.name, label.datatype, list(label.shape)) == ("label", "BYTES", [3])
    assert (scores.name, scores.datatype, list(scores.shape)) == ("probabilities", "FP32", [3, 2])
    flat = [value for p in need for value in p.probabilities.values()]
    names = [p.label for p in need]
    if raw:
        assert answer.raw_output_contents[0] == binary(Tensor("label", "BYTES", [3], names))
        assert np.frombuffer(answer.raw_output_contents[1], "<f4") == pytest.approx(flat, abs=1e-6)
        assert not label.contents.bytes_contents
    else:
        assert [text.decode() for text in label.contents.bytes_contents] == names
        assert list(scores.contents.fp32_contents) == pytest.approx(flat, abs=1e-6)
        assert not answer.raw_output_contents
    record = kept.records[-1]
    assert (record.protocol, record.request_id, record.code, record.texts) == ("grpc", "seven", 200, 3)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("datatype", ["INT64", "INT32"])
def test_ids_are_predicted_as_their_text(datatype: str, raw: bool, stub: Any, engine: Engine) -> None:
    (encoding,) = engine.task().encode(engine._state.get(), ["slow"], [0])
    ids, n = [*encoding.ids, 0, 0], len(encoding.ids)
    mask = [1] * n + [0, 0]
    made = pb.ModelInferRequest(model_name="reviews", model_version=engine.manifest.digest[:12])
    for name, data in (("input_ids", ids), ("attention_mask", mask)):
        tensor = made.inputs.add(name=name, datatype=datatype, shape=[1, n + 2])
        if raw:
            made.raw_input_contents.append(binary(Tensor(name, datatype, [1, n + 2], data)))
        else:
            contents = tensor.contents
            (contents.int_contents if datatype == "INT32" else contents.int64_contents).extend(data)
    made.outputs.add(name="truncated")
    made.outputs.add(name="logits")
    truncated, logits = stub.ModelInfer(made).outputs
    need = engine.logits(["slow"])[0].tolist()
    answer = stub.ModelInfer(made)
    if raw:
        assert answer.raw_output_contents[0] == b"\0"
        assert np.frombuffer(answer.raw_output_contents[1], "<f4") == pytest.approx(need, abs=1e-5)
    else:
        assert list(truncated.contents.bool_contents) == [False]
        assert list(logits.contents.fp32_contents) == pytest.approx(need, abs=1e-5)


def test_parameters_and_classes(stub: Any, engine: Engine) -> None:
    made = question(["slow"])
    made.parameters["top_k"].int64_param = 1
    made.parameters["raw_scores"].bool_param = True
    assert [o.name for o in stub.ModelInfer(made).outputs] == ["label", "labels", "logits"]
    classes = question(["slow"])
    classes.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    (best,) = stub.ModelInfer(classes).outputs
    (need,) = engine.predict(["slow"])
    assert best.contents.bytes_contents[0].decode().split(":")[2] == need.label


def test_what_is_refused(stub: Any, kept: Kept) -> None:
    def infer(made: Any) -> Callable[[], Any]:
        return lambda: stub.ModelInfer(made)

    mixed, wrong, no_text, odd = (question(["private"]) for _ in range(4))
    mixed.raw_input_contents.extend([b"", b""])
    wrong.inputs[0].shape[0] = 2**62
    no_text.inputs[0].contents.bytes_contents[0] = b"private\xff"
    odd.parameters["private"].string_param = "private"
    for made, message in (
        (mixed, "raw_input_contents: got 2 for 1 inputs, need one each"),
        (wrong, "inputs[0]: got a shape that does not match its 1 strings"),
        (no_text, "inputs[0]: got bytes that are not UTF-8"),
        (odd, "parameters: got an unknown name"),
        (question(["private"] * 1025), "body: got 1025 texts, need at most 1024"),
        (question(["private" * 20_000]), "text 0: got more than 100,000 characters"),
        (pb.ModelInferRequest(model_name="reviews"), "inputs: got 0 tensor(s)"),
    ):
        refused(infer(made), "INVALID_ARGUMENT", message)
        assert kept.records[-1].reason == "OTHER"
    for made in (question([], "private"), question([], model_version="private")):
        refused(infer(made), "NOT_FOUND", "got ")
    for name in ("ModelMetadata", "ModelReady"):
        request = getattr(pb, f"{name}Request")(name="private")
        refused(lambda name=name, request=request: getattr(stub, name)(request), "NOT_FOUND", "need 'reviews'")


def test_calls_of_other_servers_are_unimplemented(stub: Any) -> None:
    refused(lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="x")), "UNIMPLEMENTED", "")
    refused(lambda: stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest()), "UNIMPLEMENTED", "")


def test_a_stream_goes_on_after_a_refusal(stub: Any) -> None:
    made = [question(["slow"]), question(["slow"], "private"), question(["slow"])]
    answers = list(stub.ModelStreamInfer(iter(made)))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert answers[0].infer_response == answers[2].infer_response == stub.ModelInfer(made[0])


def test_a_message_is_as_large_as_a_body(stub: Any) -> None:
    made = question(["slow"], id="x" * (MAX_BODY_BYTES + 1))
    refused(lambda: stub.ModelInfer(made), "RESOURCE_EXHAUSTED", "larger than max")
    assert len(stub.ModelInfer(question(["slow"])).outputs) == 2


@pytest.fixture
def slow() -> tuple[Engine, list[int]]:
    """An engine whose batches take a tenth of a second, and the sizes of those that ran."""
    engine, rows = Engine.open(GOLDEN / "reviews", batcher=Batcher(max_waiting=700)), list[int]()
    graph = engine._state.get().graph
    run = graph.run

    def slowly(ids: Any) -> Any:
        rows.append(len(ids["input_ids"]))
        time.sleep(0.1)
        return run(ids)

    graph.run = slowly  # type: ignore[method-assign]
    return engine, rows


@pytest.mark.parametrize("how", ["deadline", "parameter", "cancel"])
def test_what_nobody_waits_for_is_not_computed(how: str, slow: tuple[Engine, list[int]]) -> None:
    engine, rows = slow
    kept, made = Kept(), question(["slow"] * 640)
    with started(engine, observer=kept) as port, stub_of(port) as stub:
        assert len(stub.ModelInfer(question(["slow"]), timeout=30).outputs) == 2, "the control has time"
        begun = time.perf_counter()
        if how == "cancel":
            call = stub.ModelInfer.future(made)
            time.sleep(0.25)
            call.cancel()
        else:
            if how == "parameter":
                made.parameters["timeout"].int64_param = 250_000
            refused(lambda: stub.ModelInfer(made, timeout=0.25 if how == "deadline" else None), "DEADLINE_EXCEEDED", "")
        assert time.perf_counter() - begun < 1
        time.sleep(0.3)
        assert len(rows) < 7, "20 batches would answer it"
        assert engine._state.get().batcher.waiting == 0
        assert (kept.records[-1].reason, kept.records[-1].code) in [("CANCELED", 499), ("CANCELED", 504)]


def test_a_full_queue_is_told_so(slow: tuple[Engine, list[int]]) -> None:
    engine, _ = slow
    with started(engine) as port, stub_of(port) as stub:
        call = stub.ModelInfer.future(question(["slow"] * 700))
        time.sleep(0.25)
        refused(
            lambda: stub.ModelInfer(question(["slow"])), "RESOURCE_EXHAUSTED", "queue: got 1 texts with 700 waiting"
        )
        call.cancel()


def test_a_token_is_needed_but_for_probes(engine: Engine) -> None:
    with started(engine, token=TOKEN) as port, stub_of(port) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", TOKEN.decode()),)):
            for name in ("ModelInfer", "ServerMetadata", "ModelMetadata", "RepositoryIndex"):
                ask, request = getattr(stub, name), getattr(pb, f"{name}Request")()
                refused(
                    lambda a=ask, r=request, m=metadata: a(r, metadata=m), "UNAUTHENTICATED", "authorization: got no"
                )
        right = [("authorization", f"Bearer {TOKEN.decode()}")]
        assert len(stub.ModelInfer(question(["slow"]), metadata=right).outputs) == 2


def test_a_server_that_stops_is_not_ready(engine: Engine) -> None:
    with started(engine, is_ready=False) as port, stub_of(port) as stub:
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="reviews")).ready
        assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_a_port_in_use(engine: Engine) -> None:
    with started(engine) as port:
        at = Listening(host="127.0.0.1", port=0, grpc_port=port)
        with pytest.raises(
            ServeError,
            match=f"127.0.0.1 port {port}: cannot listen there, or ",
        ):
            asyncio.run(start_grpc(service_of(engine), Kept(), at, is_ready=lambda: True))
