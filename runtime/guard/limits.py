"""A request -> the same with its whole body at hand, or a refusal: bodies are small, soon complete and plain."""

import asyncio
from io import BytesIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptexport.runtime.guard.refusals import refuse

MAX_BODY_BYTES = 2 << 20
"""That of text-embeddings-inference; 1,024 texts of 2 kB."""
MAX_ALL_BYTES = 128 << 20
"""Of all bodies at once; else those of all connections could fill the memory of a small machine."""
BODY_SECONDS = 10.0


class LimitBodies:
    """ASGI middleware that reads bodies before the application runs; what is too large or too slow never reaches it.

    A request without a body passes through untouched.

    Args:
        app: gets requests with a whole body.
        max_bytes: most bytes of a body.
        max_all_bytes: most bytes of all bodies that are being read or answered.
        seconds: in which a body must be complete.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        max_all_bytes: int = MAX_ALL_BYTES,
        seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_all_bytes = max_all_bytes
        self._seconds = seconds
        self._all_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        length: int | None = 0
        refusal: _Refusal | None = None
        for name, value in scope.get("headers", ()):
            if name == b"content-length":
                length = int(value)  # digits: llhttp has checked
            elif name == b"transfer-encoding":
                length = None
                if value.lower() != b"chunked":
                    refusal = 400, "transfer-encoding: got another coding, need chunked; send the body as it is"
            elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                refusal = 415, "content-encoding: got a compressed body, need a plain one; send it uncompressed"
        if length == 0:
            await self._app(scope, receive, send)
            return
        if refusal is None and length is not None and length > self._max_bytes:
            refusal = self._too_large()
        if refusal is None:
            body = BytesIO()  # unlike a list of pieces it gives its bytes away without a copy
            try:
                refusal = await self._read_into(body, receive)
                if refusal is None:
                    await self._app(scope, _with_body(body.getvalue(), receive), send)
                    return
            except _ClientGoneError:
                return
            finally:
                self._all_bytes -= body.tell()
        headers = [(b"retry-after", b"1")] if refusal[0] == 503 else []
        await refuse(scope, receive, send, *refusal, headers)

    async def _read_into(self, body: BytesIO, receive: Receive) -> "_Refusal | None":
        """Read a body; return why it is refused.

        Raises:
            _ClientGoneError: the client has gone.
        """
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    self._all_bytes += body.write(message.get("body", b""))
                    if body.tell() > self._max_bytes:
                        return self._too_large()
                    if self._all_bytes > self._max_all_bytes:
                        return (
                            503,
                            f"server: got more than {self._max_all_bytes} bytes of bodies at once; try again later",
                        )
                    more = message.get("more_body", False)
        except TimeoutError:
            return 408, f"body: got only a part of it within {self._seconds:g} s, need all of it; send it faster"
        return None

    def _too_large(self) -> "_Refusal":
        return 413, f"body: got more than {self._max_bytes} bytes; send fewer texts at once"


_Refusal = tuple[int, str]


class _ClientGoneError(Exception):
    """The client hung up before its body was complete."""


def _with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body first and keeps no reference to it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_whole() -> Message:
        return left.pop() if left else await receive()

    return receive_whole
