"""The service over gRPC: messages of the Open Inference Protocol <-> its values.

The messages are those that Triton's client publishes (tritonclient.grpc.service_pb2); KServe's have the same wire form.
Source: Open Inference Protocol, version 2, gRPC; Triton, grpc_service.proto.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ptexport.runtime.errors import ClientGoneError, MissingExtraError, RequestError, ServeError
from ptexport.runtime.guard.auth import SENTENCE, is_token, token_of_metadata
from ptexport.runtime.guard.limits import MAX_BODY_BYTES
from ptexport.runtime.monitoring.logs import request_id
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.monitoring.tracing import trace_context
from ptexport.runtime.server.address import Listening
from ptexport.runtime.server.app import EXTENSIONS
from ptexport.runtime.server.stopping import DRAIN_S
from ptexport.runtime.serving import tensors
from ptexport.runtime.serving.call import Call, Failure, failure_of
from ptexport.runtime.serving.questions import check_memory, classes_of
from ptexport.runtime.serving.service import Service
from ptexport.runtime.serving.tensors import InferRequest, InferResponse, OutputRequest, Tensor

try:
    import grpc
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc as stubs
except ImportError as e:
    raise MissingExtraError(f"gRPC needs the package {e.name!r}; pip install 'ptexport[grpc]'") from e

MAX_CALLS = 512
"""Calls that are open at a time; further ones are refused at once."""
MAX_CONNECTIONS = 512
"""Further ones are closed at once. A client needs one for any number of calls."""
HANDSHAKE_S = 10
"""For a client to begin HTTP/2, over TLS or not; gRPC would give it two minutes."""
IDLE_S = 300
"""After which a connection without calls is closed; clients open another for their next call."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}
"""Fields of InferTensorContents by datatype."""


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A running gRPC server."""

    port: int
    stop: Callable[[], Awaitable[None]]


async def start_grpc(service: Service, observer: Observer, at: Listening, is_ready: Callable[[], bool]) -> GrpcServer:
    """Serve over gRPC in the running event loop.

    Raises:
        ServeError: the port cannot be listened on.
    """
    options = [
        ("grpc.max_receive_message_length", MAX_BODY_BYTES),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
        ("grpc.max_connection_idle_ms", IDLE_S * 1000),
        ("grpc.so_reuseport", 0),  # else a second server could share the port
    ]
    interceptors = [_RequireToken(at.token, observer.metrics.refused)] if at.token is not None else []
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS, interceptors=interceptors)
    stubs.add_GRPCInferenceServiceServicer_to_server(_Servicer(service, observer, is_ready), server)
    where = f"{at.shown_host}:{at.grpc_port}"
    try:
        if at.tls is None:
            port = server.add_insecure_port(where)
        else:
            pair = (at.tls.key, at.tls.certificate)
            port = server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
    except RuntimeError as e:
        why = "cannot listen there, or it is already in use"  # gRPC does not say which
        raise ServeError(f"{at.host} port {at.grpc_port}: {why}; choose another with --host or --grpc-port") from e
    await server.start()

    async def stop() -> None:
        await server.stop(DRAIN_S)

    return GrpcServer(port, stop)


class _RequireToken(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without the token, but for probes."""

    _OPEN = ("/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady")

    def __init__(self, token: bytes, count: Callable[[int], None]) -> None:
        self._token = token
        self._count = count

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method in self._OPEN or is_token(token_of_metadata(details.invocation_metadata), self._token):
            return await continuation(details)
        self._count(401)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, SENTENCE)

        async def refuse_stream(_: Any, context: Any) -> AsyncIterator[None]:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, SENTENCE)
            yield

        if details.method.endswith("/ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(refuse_stream)
        return grpc.unary_unary_rpc_method_handler(refuse)


class _Servicer(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls of the protocol; all others of Triton's answer UNIMPLEMENTED."""

    def __init__(self, service: Service, observer: Observer, is_ready: Callable[[], bool]) -> None:
        self._service = service
        self._observer = observer
        self._is_ready = is_ready

    async def ServerLive(self, _: Any, __: Any) -> Any:  # noqa: N802 - the protocol's names
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Any, __: Any) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(self, _: Any, __: Any) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="ptexport", version=version("ptexport"), extensions=EXTENSIONS)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._metadata(request, context)
        return pb.ModelReadyResponse(ready=self._is_ready())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        metadata = await self._metadata(request, context)
        return pb.ModelMetadataResponse(**{key: value for key, value in metadata.items() if key != "parameters"})

    async def RepositoryIndex(self, _: Any, __: Any) -> Any:  # noqa: N802
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in self._service.index()]
        )

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Answer requests of a stream one after the other; an error is the answer to its request."""
        async for request in requests:
            response, failure = await self._infer(request, context)
            yield pb.ModelStreamInferResponse(infer_response=response, error_message=failure.message if failure else "")

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        response, failure = await self._infer(request, context)
        if failure:
            await context.abort(_CODES[failure.code], failure.message)
        return response

    async def _infer(self, request: Any, context: Any) -> tuple[Any, Failure | None]:
        metadata = context.invocation_metadata()

        def given(name: str) -> list[str]:
            return [value for key, value in metadata if key == name and isinstance(value, str)]

        trace = trace_context(given("traceparent"), given("tracestate"))
        call = Call(
            protocol="grpc",
            request_id=request_id(next(iter(given("x-request-id")), None)),
            trace=self._observer.trace_id(trace),
            timeout_s=context.time_remaining(),
        )
        failure: Failure | None = None
        try:
            name, version_ = request.model_name, request.model_version or None
            self._service.begin(call, name, version_)
            answer = await self._service.infer(name, version_, _values(request), call)
            return _message(answer, request), None
        except asyncio.CancelledError:
            failure = failure_of(ClientGoneError() if self._is_ready() else asyncio.CancelledError())
            raise
        except Exception as e:  # whatever it is, the caller gets a status
            failure = failure_of(e)
            if failure.reason == "BACKEND":
                self._observer.logs.failed(e, call.request_id)
            return None, failure
        finally:
            record = call.record(failure.code if failure else 200, failure.reason if failure else None)
            self._observer.answered(record, trace, None)

    async def _metadata(self, request: Any, context: Any) -> dict[str, Any]:
        try:
            return self._service.metadata(request.name, request.version or None)
        except RequestError as e:
            failure = failure_of(e)
            await context.abort(_CODES[failure.code], failure.message)
            raise


def _values(request: Any) -> InferRequest:
    """Read a ModelInferRequest.

    Raises:
        RequestError: contents and raw contents are mixed, or hold no such elements.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"raw_input_contents: got {len(raw)} for {len(request.inputs)} inputs, need one each; send all raw, or none"
        )
    inputs = []
    for number, tensor in enumerate(request.inputs):
        where = f"inputs[{number}]"
        if raw:
            data: Sequence[Any] = tensors.elements(where, tensor.datatype, raw[number])
        elif tensor.datatype == "BYTES":
            tensors.check_elements(where, len(tensor.contents.bytes_contents))
            data = [tensors.text_of(where, text) for text in tensor.contents.bytes_contents]
        else:
            data = [*getattr(tensor.contents, _CONTENTS.get(tensor.datatype, "int64_contents"))]
        check_memory(tensor.parameters, where)
        inputs.append(Tensor(tensor.name, tensor.datatype, [*tensor.shape], data))
    outputs = []
    for number, output in enumerate(request.outputs):
        where, given = f"outputs[{number}]", {name: _parameter(value) for name, value in output.parameters.items()}
        check_memory(given, where)
        outputs.append(
            OutputRequest(name=output.name, classification=classes_of(given.get("classification", 0), where))
        )
    parameters = {name: _parameter(value) for name, value in request.parameters.items()}
    return InferRequest(inputs=inputs, outputs=outputs, parameters=parameters, id=request.id or None)


def _parameter(value: Any) -> Any:
    kind = value.WhichOneof("parameter_choice")
    return None if kind is None else getattr(value, kind)


def _message(response: InferResponse, request: Any) -> Any:
    """Write a ModelInferResponse: with typed contents if the request had them, else with raw ones as Triton does."""
    made = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id or "")
    typed = bool(request.inputs) and not request.raw_input_contents
    for tensor in response.outputs:
        output = made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if typed:
            data = [text.encode() for text in tensor.data] if tensor.datatype == "BYTES" else tensor.data
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(data)
        else:
            made.raw_output_contents.append(tensors.binary(tensor))
    return made
