"""A request -> the same with its whole body at hand, or a refusal: bodies are small, soon complete and plain."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ptexport.runtime.guard.refusals import refuse

MAX_BODY_BYTES = 2 << 20
"""That of text-embeddings-inference; 1,024 texts of 2 kB."""
BODY_SECONDS = 10.0


class LimitBodies:
    """ASGI middleware that reads bodies before the application runs; what is too large or too slow never reaches it.

    A request without a body passes through untouched.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or refuse it."""
        length: int | None = 0
        refusal: tuple[int, str] | None = None
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
            body = await self._read(receive)
            if body is None:
                return  # the client has gone
            if isinstance(body, bytes):
                await self._app(scope, _with_body(body, receive), send)
                return
            refusal = body
        await refuse(scope, receive, send, *refusal)

    async def _read(self, receive: Receive) -> bytes | tuple[int, str] | None:
        """Read a body; return it, or the refusal, or None if the client has gone."""
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._max_bytes:
                        return self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            return 408, f"body: got only a part of it within {self._seconds:g} s, need all of it; send it faster"
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> tuple[int, str]:
        return 413, f"body: got more than {self._max_bytes} bytes; send fewer texts at once"


def _with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body first and keeps no reference to it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_whole() -> Message:
        return left.pop() if left else await receive()

    return receive_whole
