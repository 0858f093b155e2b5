"""A service -> an HTTP application: the Open Inference Protocol, and `POST /predict`."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ptexport.runtime.errors import ClientGoneError, RequestError
from ptexport.runtime.monitoring.logs import request_id
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.monitoring.records import timing_headers
from ptexport.runtime.monitoring.tracing import HttpCall, trace_context
from ptexport.runtime.server import bodies, openapi
from ptexport.runtime.server.page import page_routes
from ptexport.runtime.serving.call import Call, Failure, failure_of
from ptexport.runtime.serving.service import Service

_T = TypeVar("_T")

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository(index)", "parameters"]
TIMEOUT_HEADER = "x-request-timeout-ms"

_SENTENCES = {
    "Not Found": "path: unknown; use /predict or a path of the Open Inference Protocol, such as /v2",
}
"""Messages of Starlette -> messages of this server."""

_Answer = Callable[[Request, Call], Awaitable[Response]]


def make_app(service: Service, observer: Observer, is_ready: Callable[[], bool]) -> Starlette:
    """Make the application, without the limits that stand in front of it.

    Args:
        service: answers the requests.
        observer: is told of every request that asked for predictions.
        is_ready: whether the server accepts requests; False once it stops.
    """

    async def failed(_: Request, error: Exception) -> Response:
        observer.logs.failed(error)
        return _refusal(failure_of(error))

    app = Starlette(
        routes=_Endpoints(service, observer, is_ready).routes(),
        exception_handlers={HTTPException: _http_error, RequestError: _request_error, Exception: failed},
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """What answers at each path."""

    def __init__(self, service: Service, observer: Observer, is_ready: Callable[[], bool]) -> None:
        self._service = service
        self._observer = observer
        self._is_ready = is_ready

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        infer, predict = _measured(self.infer, self._observer), _measured(self.predict, self._observer)
        of_model = [
            route
            for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
            for route in (
                Route(f"{path}/infer", infer, methods=["POST"]),
                Route(path, self.model),
                Route(f"{path}/ready", self.model_ready),
            )
        ]
        return [  # in the order in which they are compared with a path
            Route("/predict", predict, methods=["POST"]),
            *of_model,
            Route("/v2", self.server),
            Route("/v2/", self.server),  # as the protocol writes it
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models", self.models),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            *page_routes(),
        ]

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        now = self._is_ready()
        return _json({"ready": now}, 200 if now else 503)

    async def server(self, _: Request) -> Response:
        return _json({"name": "ptexport", "version": version("ptexport"), "extensions": EXTENSIONS})

    async def models(self, _: Request) -> Response:
        return _json({"models": self._service.names()})

    async def index(self, _: Request) -> Response:
        return _json(self._service.index())

    async def model(self, request: Request) -> Response:
        return _json(self._service.metadata(*_name(request)))

    async def model_ready(self, request: Request) -> Response:
        name, version_ = _name(request)
        self._service.metadata(name, version_)
        now = self._is_ready()
        return _json({"name": name, "ready": now}, 200 if now else 503)

    async def infer(self, request: Request, call: Call) -> Response:
        self._service.begin(call, *_name(request))
        header = request.headers.get(bodies.HEADER_LENGTH)
        decoded, binary = bodies.decode_infer(await request.body(), header)
        answer = await _unless_gone(request, self._service.infer(*_name(request), decoded, call))
        body, length = bodies.encode_infer(answer, binary)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={bodies.HEADER_LENGTH: str(length)})

    async def predict(self, request: Request, call: Call) -> Response:
        self._service.begin(call, None)
        texts, task, options = bodies.decode_predict(await request.body(), self._service.fields_of)
        answer = await _unless_gone(request, self._service.predict(texts, task, options, call))
        return Response(bodies.encode_predictions(answer), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        # In a thread: with many models it takes milliseconds.
        kind, body = await run_in_threadpool(self._observer.metrics.render, request.headers.get("accept"))
        return Response(body, media_type=kind)

    async def openapi(self, _: Request) -> Response:
        return _json(openapi.document())


def _name(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")


def _measured(answer: _Answer, observer: Observer) -> Callable[[Request], Awaitable[Response]]:
    """Answer a request, or say in one sentence why not; with its id and where its time went; and keep its record."""

    async def measured(request: Request) -> Response:
        headers = request.headers
        context = trace_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
        call = Call(
            protocol="http",
            request_id=request_id(headers.get("x-request-id")),
            trace=observer.trace_id(context),
        )
        failure: Failure | None = None
        try:
            call.timeout_s = _timeout_s(headers.get(TIMEOUT_HEADER))
            response = await answer(request, call)
        except (Exception, asyncio.CancelledError) as e:  # whatever it is, the caller gets a status and a sentence
            failure = failure_of(e)
            response = _refusal(failure)
            if failure.reason == "BACKEND":
                observer.logs.failed(e, call.request_id)
        record = call.record(response.status_code, failure.reason if failure else None)
        added = {"x-request-id": call.request_id, **timing_headers(call.timing, record.total_s)}
        # Not `headers.update`, which looks for each name among all others.
        response.raw_headers += [(name.encode(), value.encode()) for name, value in added.items()]
        scope = request.scope
        http = HttpCall(scope["method"], scope["route"].path, scope["path"], scope["scheme"])
        observer.answered(record, context, http)
        return response

    return measured


def _refusal(failure: Failure) -> Response:
    response = _json({"error": failure.message}, failure.code)
    if failure.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(failure.retry_after_s)))
    return response


def _timeout_s(header: str | None) -> float | None:
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and 0 < len(header) < 10 and int(header)):
        raise RequestError(f"header {TIMEOUT_HEADER}: got another value, need whole milliseconds from 1; correct it")
    return int(header) / 1000


async def _unless_gone(request: Request, answer: Awaitable[_T]) -> _T:
    """Wait for an answer, and drop it if the client goes away."""
    waiting, gone = asyncio.current_task(), asyncio.ensure_future(request.receive())
    assert waiting is not None  # a coroutine that runs is one of a task

    def drop(_: object) -> None:
        if not ended:
            waiting.cancel()

    ended = False

    gone.add_done_callback(drop)
    try:
        return await answer
    except asyncio.CancelledError:
        if not gone.done() or waiting.uncancel():
            raise  # the server stops
        raise ClientGoneError from None
    finally:
        ended = True  # in case the callback is on its way already
        gone.remove_done_callback(drop)
        gone.cancel()


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    message = _SENTENCES.get(error.detail, error.detail)
    if allowed is not None:
        need = " or ".join(sorted(allowed.split(", ")))
        message = f"method: got another one, need {need} for this path; use that"
    response = _json({"error": message}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _request_error(_: Request, error: Exception) -> Response:
    return _refusal(failure_of(error))
