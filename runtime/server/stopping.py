"""The first signal -> a server that finishes its work and ends; the second -> one that leaves at once."""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, MappingProxyType
from typing import Any

import uvicorn

DRAIN_S = 29
"""Together with uvicorn's own shutdown this stays below the 30 s after which Kubernetes kills a process."""
HANDSHAKE_S = 10.0
"""For a client to begin TLS; asyncio's 60 s would let few clients hold many connections."""


@contextmanager
def ending_at_a_signal() -> Iterator[None]:
    """End the process with 0 at SIGTERM or SIGINT, until a server sets its own handlers: there is nothing to finish.

    The first process of a container, which has no handlers, would ignore both. An error puts the handlers from before
    back.
    """
    before = {number: signal.signal(number, lambda *_: os._exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise


class StoppableServer(uvicorn.Server):
    """A uvicorn server with the manners of a service.

    At the first SIGTERM or SIGINT, `is_stopping` turns true, no connection is accepted any more, open ones get
    `Connection: close` with their next answer, and `run_until_stopped` returns when all are closed, at latest after
    the configuration's `timeout_graceful_shutdown`. At the second the process ends with 128 + the signal's number.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_start: Callable[[], Awaitable[None]],
        on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
        state: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Make a server.

        Args:
            config: with `lifespan="off"` and `timeout_graceful_shutdown`.
            on_start: awaited when requests are accepted: starts what runs beside, then says that all runs.
            on_stop: awaited together with the open requests: each stops what runs beside, such as gRPC.
            state: what each request has in `scope["state"]`.
        """
        super().__init__(config)
        self._on_start = on_start
        self._on_stop = on_stop
        self._state = state

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has come: the server is no longer ready."""
        return self.should_exit

    def run_until_stopped(self, listener: socket.socket) -> None:
        """Serve until a signal comes. Call it on the main thread; the handlers of both signals stay replaced."""
        # uvicorn sets its handlers later; a signal that arrives before is not lost. It puts these back at its end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        self.run(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, or leave at once. uvicorn would raise the signals again at its end; a requested stop is a success."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, as uvicorn does but with a deadline for TLS."""
        loop, config = asyncio.get_running_loop(), self.config
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=HANDSHAKE_S if config.ssl else None,
            )
            for listener in sockets or ()
        ]
        self.started = True
        await self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse connections, finish requests, and stop what runs beside at the same time."""
        await self._accept_the_last(sockets or [])
        await asyncio.gather(super().shutdown(sockets), *(stop() for stop in self._on_stop))

    async def _accept_the_last(self, listeners: list[socket.socket]) -> None:
        """Take the connections that wait at the listeners; with a listener that closes the kernel would reset them."""
        waiting: list[socket.socket] = []
        for listener, server in zip(listeners, self.servers, strict=True):
            with suppress(BlockingIOError):
                while len(waiting) < self.config.backlog:
                    waiting.append(listener.accept()[0])
            with suppress(OSError):  # Linux stops listening at once; the loop closes the socket only in its next round
                listener.shutdown(socket.SHUT_RDWR)
            server.close()
        loop, ssl = asyncio.get_running_loop(), self.config.ssl
        timeout = HANDSHAKE_S if ssl else None
        connecting = [
            loop.create_task(
                loop.connect_accepted_socket(self._connection, peer, ssl=ssl, ssl_handshake_timeout=timeout)
            )
            for peer in waiting
        ]
        # Beside TLS this takes no time, and whoever needs longer is not waited for. Clients may go away meanwhile.
        await asyncio.wait([asyncio.gather(*connecting, return_exceptions=True)], timeout=0.1)

    def _connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={**self._state}
        )
