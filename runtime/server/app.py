"""An engine -> an HTTP server, with the Open Inference Protocol and `POST /predict`."""

import asyncio
import errno
import signal
import socket
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.task import Task
from ptexport.runtime.errors import DataError, RequestError, ServeError
from ptexport.runtime.server import oip
from ptexport.runtime.server.page import page_routes

_T = TypeVar("_T")

MAX_BODY_BYTES = 1 << 20
DRAIN_S = 29
"""Together with uvicorn's own shutdown this stays below the 30 s after which Kubernetes kills a process."""

_SENTENCES = {
    "Not Found": "path: unknown; use /predict or a path of the Open Inference Protocol, such as /v2",
    "Method Not Allowed": "method: not allowed for this path; use POST for /predict and /infer, GET for all others",
}
"""Messages of Starlette -> messages of this server."""


def make_app(engine: Engine) -> Starlette:
    """Make the application.

    Args:
        engine: the open bundle; requests take turns in `predict_async`, since one session uses all CPUs.
    """
    routes = [
        Route("/v2", _server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
        *_routes_of(engine),
        *page_routes(),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            RequestError: _bad_request,
            DataError: _bad_request,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return app


def _routes_of(engine: Engine) -> list[Route]:
    """Make the routes of the models; each task is a model."""

    def find(request: Request) -> Task:
        name = request.path_params["name"]
        if name not in engine.tasks:
            need = " or ".join(map(repr, engine.tasks))
            raise HTTPException(404, f"model: got another name, need {need}; change the path")
        return engine.tasks[name]

    async def model(request: Request) -> Response:
        return _json(oip.model_metadata(find(request).entry))

    async def ready(request: Request) -> Response:
        return _json({"name": find(request).entry.name, "ready": True})

    async def infer(request: Request) -> Response:
        task = find(request)
        if "inference-header-content-length" in request.headers:
            raise RequestError("body: got binary tensors, need JSON; send the texts in `data`")
        body = oip.decode(await _body(request), oip.InferRequest)
        predictions = await _finished(task.predict_async(oip.texts_of_infer(body, task.entry)))
        return _json(oip.infer_response(body, task.entry, predictions))

    async def predict(request: Request) -> Response:
        body = oip.decode(await _body(request), oip.PredictRequest)
        if body.task == ALL:
            texts = oip.texts_of_predict(body, next(iter(engine.tasks.values())).entry.fields)
            return _json(oip.predict_all_response(await _finished(engine.predict_all_async(texts))))
        if body.task is not None and body.task not in engine.tasks:
            raise RequestError(
                f"task: got another name, need {' or '.join(map(repr, engine.tasks))}; send one of these"
            )
        task = engine.task(body.task)
        predictions = await _finished(task.predict_async(oip.texts_of_predict(body, task.entry.fields)))
        return _json(oip.predict_response(predictions))

    async def models(_: Request) -> Response:
        return _json({"models": list(engine.tasks)})

    return [
        Route("/v2/models", models),
        Route("/v2/models/{name}", model),
        Route("/v2/models/{name}/ready", ready),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
        Route("/predict", predict, methods=["POST"]),
    ]


async def _finished(predictions: Awaitable[_T]) -> _T:
    """Wait for predictions, which a server that stops cancels."""
    try:
        return await predictions
    except asyncio.CancelledError as e:
        raise HTTPException(503, f"server: stopped, {DRAIN_S} s after it was told to; send the texts again") from e


async def _live(_: Request) -> Response:
    return _json({"live": True})


async def _ready(_: Request) -> Response:
    return _json({"ready": True})


async def _server(_: Request) -> Response:
    return _json({"name": "ptexport", "version": version("ptexport"), "extensions": []})


def serve(engine: Engine, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then refuse connections, finish open requests and return.

    Requests that are not finished after `DRAIN_S` get status 503. The engine's current batch may still run when this
    function returns, so a process that must end at once must not wait for its threads.

    Call it on the main thread. The handlers of both signals stay replaced afterwards.

    Args:
        engine: the open bundle.
        host: address to listen on.
        port: port to listen on; 0: any free one.
        on_ready: called with the address, "http://host:port", once requests are accepted.

    Raises:
        ServeError: the address cannot be listened on.
    """
    listener = _listen(host, port)

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")

    config = uvicorn.Config(
        make_app(engine),
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = Announcing(config)
    # uvicorn raises the signal again after its shutdown, for the handlers that it replaced. With these, a requested
    # stop is a success, and a signal that arrives before uvicorn's own handlers are set is not lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            # Without this a second server could bind the same port before uvicorn listens.
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError) as e:  # UnicodeError: the host is not a valid name
        in_use = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        why = "already in use" if in_use else f"cannot listen there ({getattr(e, 'strerror', None) or e})"
        raise ServeError(f"{host} port {port}: {why}; choose another with --host or --port") from e


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > MAX_BODY_BYTES:
            raise HTTPException(413, f"body: got more than {MAX_BODY_BYTES} bytes; send fewer texts at once")
        body += chunk
    return bytes(body)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": _SENTENCES.get(error.detail, error.detail)}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _bad_request(_: Request, error: Exception) -> Response:
    return _json({"error": str(error)}, 400)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # the client has disconnected, so this is not read


async def _failed(_: Request, __: Exception) -> Response:
    return _json({"error": "server: failed with an internal error; see its log"}, 500)
