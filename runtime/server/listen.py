"""A service -> HTTP and gRPC on their ports, until a signal comes."""

import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import uvicorn
from starlette.types import ASGIApp

from ptexport.runtime.errors import ServeError
from ptexport.runtime.guard.auth import RequireToken
from ptexport.runtime.guard.connections import Connection
from ptexport.runtime.guard.limits import LimitBodies
from ptexport.runtime.guard.origins import CheckOrigin, own_names
from ptexport.runtime.guard.refusals import COUNT
from ptexport.runtime.guard.tls import Tls
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.server.address import Listening
from ptexport.runtime.server.app import make_app
from ptexport.runtime.server.stopping import DRAIN_S, StoppableServer
from ptexport.runtime.serving.service import Service

KEEP_ALIVE_S = 75
"""For an idle connection, as nginx gives it: longer than clients and load balancers keep theirs, so that none sends a
request on a connection that the server closes at this moment. uvicorn's 5 s are those of httpx."""

Hook = Callable[[], Awaitable[None]]
OnReady = Callable[[Sequence[str], Callable[[], bool]], None]


def listen(
    service: Service,
    observer: Observer,
    at: Listening,
    *,
    on_ready: OnReady,
    on_stop: Sequence[Hook] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then refuse connections, finish open requests and return.

    Requests that are not finished after `DRAIN_S` get status 503. A second signal ends the process at once. The
    engine's current batch may still run when this function returns, so a process that must end at once must not wait
    for its threads.

    Call it on the main thread. The handlers of both signals stay replaced afterwards.

    Args:
        service: answers the requests.
        observer: is told of them.
        at: where to listen.
        on_ready: called once requests are accepted, with the addresses, such as "http://127.0.0.1:8000", and a function
            that tells whether they still are.
        on_stop: awaited while open requests finish.

    Raises:
        ServeError: an address cannot be listened on.
        MissingExtraError: gRPC is asked for, and its packages are not installed.
    """
    listener = _bound(at.host, at.port)
    scheme = "http" if at.tls is None else "https"
    addresses = [f"{scheme}://{at.shown_host}:{listener.getsockname()[1]}"]
    hooks = list(on_stop)

    async def start() -> None:
        if at.grpc_port is not None:
            from ptexport.runtime.server.grpc_service import start_grpc

            grpc = await start_grpc(service, observer, at, is_ready)
            addresses.append(f"grpc://{at.shown_host}:{grpc.port}")
            hooks.append(grpc.stop)
        on_ready(addresses, is_ready)

    def is_ready() -> bool:
        return not server.is_stopping and bool(service.models.names())

    config = _configuration(_guarded(make_app(service, observer, is_ready), at, listener), at)
    server = StoppableServer(config, on_start=start, on_stop=hooks, state={COUNT: observer.metrics.refused})
    server.run_until_stopped(listener)


def _guarded(app: ASGIApp, at: Listening, listener: socket.socket) -> ASGIApp:
    """Put the limits of bodies in front of an application, and in front of these the token or the check of hosts."""
    limited = LimitBodies(app)
    if at.token is not None:
        return RequireToken(limited, at.token)
    return CheckOrigin(limited, own_names(at.shown_host, listener.getsockname()[0]))


def _configuration(app: ASGIApp, at: Listening) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else a client could say which address it has
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_context_factory=None if at.tls is None else _factory(at.tls),
    )


def _bound(host: str, port: int) -> socket.socket:
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


def _factory(tls: Tls) -> Callable[..., ssl.SSLContext]:
    return lambda *_: tls.context
