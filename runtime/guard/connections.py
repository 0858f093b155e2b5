"""Bytes of a connection -> requests for the application, within limits; what is no request gets one JSON sentence.

uvicorn parses with llhttp, which refuses what could be read as two requests (two lengths, a length and chunks, spaces
before a colon, bare line feeds). What uvicorn lacks stands here: deadlines and sizes of request heads, a limit of
connections, clients that do not read their answer, and refusals as the routes write them.
"""

import asyncio
import resource
from asyncio import TimerHandle
from dataclasses import dataclass
from typing import ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ptexport.runtime.guard.limits import MAX_BODY_BYTES
from ptexport.runtime.guard.refusals import LINGER_S, count, sentence_body


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may cost."""

    connections: int = 800
    """Open ones; below the 1,024 files that a process may have open by default."""
    head_s: float = 10.0
    head_bytes: int = 32 << 10
    """nginx's; a browser sends the cookies of everything on localhost."""
    headers: int = 100
    target_bytes: int = 2048
    message_bytes: int = 2 * MAX_BODY_BYTES
    """Of a body as sent. Chunks of one byte take six, and a chunk's extensions take any number."""
    pipelined: int = 16
    send_s: float = 30.0
    """For a client to take 64 kB of its answer."""
    linger_s: float = LINGER_S
    idle_at_stop_s: float = 1.0
    """How long a server that stops waits for a request that is on its way on an open connection."""


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one, and without one nobody is answered."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _RefusedError(Exception):
    """Stops the parser; the reason is in `_refusal`."""


_MALFORMED = 400, "request: got bytes that are not HTTP/1.1; check the client and the scheme (http or https)"


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within `limits`; make a subclass to change them."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    _in_head = True
    _refused = False
    _stopping = False
    _refusal: tuple[int, str] = _MALFORMED
    _received = 0  # bytes of the message that is being read
    _head_bytes = 0
    _head_timer: TimerHandle | None = None
    _end_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        spare = len(self.connections) - self.limits.connections
        if spare > 100:  # refusals wait for their clients too
            count(self.app_state, 503)
            transport.abort()
        elif spare > 0:
            self._refused = True
            sentence = f"server: got more than {self.limits.connections} connections at once; try again later"
            self._answer(503, sentence, b"retry-after: 1\r\n")
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._end_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse it if it is no request or goes beyond a limit."""
        self._unset_keepalive_if_required()
        if self._refused:
            return
        self._received += len(data)
        try:
            self._feed(data)
            self._check_received()
        except (httptools.HttpParserError, _RefusedError):
            self._refuse(*self._refusal)
        if self._in_head and self._received:
            self._watch_head()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as e:
            rest = data[e.args[0] :]
        # llhttp takes the body for another protocol. No other one is spoken here, and a server may ignore the wish:
        # Java's client sends it (h2c) with the first request of a connection. So parse the request without it.
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        self._feed(b"".join([*head, b"\r\n", rest]))

    def _check_received(self) -> None:
        """Limit what the parser keeps or drops without telling: half a header, chunk extensions, trailers."""
        if self._in_head and self._received > self.limits.head_bytes:
            self._stop_parsing(431, self._too_large_head())
        if (
            not self._in_head
            and self._received > self.limits.message_bytes
            and not self.cycle.response_started  # else the body is read away; see refusals.py
        ):
            self._stop_parsing(
                413, f"body: got more than {self.limits.message_bytes} bytes with its chunk headers; send larger chunks"
            )

    def _stop_parsing(self, status: int, sentence: str) -> None:
        self._refusal = status, sentence
        raise _RefusedError

    def _too_large_head(self) -> str:
        most = f"{self.limits.headers} or {self.limits.head_bytes} bytes"
        return f"headers: got more than {most}; send fewer and shorter ones"

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._received = max(self._received, 1)  # of a read with the end of another request no byte is counted yet
        if len(self.pipeline) >= self.limits.pipelined:
            self._stop_parsing(503, "request: got too many before their answers; wait for an answer")

    def on_url(self, url: bytes) -> None:
        """Take a part of the request target."""
        super().on_url(url)
        if len(self.url) > self.limits.target_bytes:
            self._stop_parsing(414, f"path: got more than {self.limits.target_bytes} bytes; send a shorter one")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are dropped: behind a body a header would escape all checks."""
        if not self._in_head:
            return
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + 4
        if len(self.headers) > self.limits.headers or self._head_bytes > self.limits.head_bytes:
            self._stop_parsing(431, self._too_large_head())

    def on_headers_complete(self) -> None:
        """Start the application."""
        if self.parser.get_http_version() not in ("1.0", "1.1") or self.parser.get_method() == b"CONNECT":
            self._stop_parsing(*_MALFORMED)
        if self.parser.should_upgrade():
            return  # _feed parses the request again
        super().on_headers_complete()
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """End a request."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head = True
        self._received = 0

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer what cannot be parsed, in its turn, and read no further."""
        self._refused = True
        cycle = self.cycle
        if not self._in_head:
            if any(cycle is waiting for waiting, _ in self.pipeline):
                return  # it starts later, finds its body incomplete and is refused by LimitBodies
            if cycle.response_started:
                self.transport.close()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False  # the requests before are answered, then the connection is closed
            return
        self._answer(status, sentence)

    def _answer(self, status: int, sentence: str, headers: bytes = b"") -> None:
        """Write a refusal; read on and drop for a while, since a reset would destroy it (see refusals.py)."""
        count(self.app_state, status)
        body = sentence_body(sentence)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
        self.transport.write(STATUS_LINE[status] + head % (len(body), headers) + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_in(self.limits.linger_s)

    def _watch_head(self) -> None:
        """Give the head of a request a deadline."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._refused or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._watch_head()  # requests before it run, and reading may be paused
        elif self._received == 0:
            self.transport.close()  # a browser opens connections that it may need
        else:
            self._refused = True
            self._answer(
                408, f"headers: got only a part of them within {self.limits.head_s:g} s; send them without a pause"
            )

    def _end_in(self, seconds: float) -> None:
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._end_timer = self.loop.call_later(seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Give a client that does not read its answer a deadline."""
        super().pause_writing()
        self._end_in(self.limits.send_s)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._end_timer is not None and not self._refused:
            self._end_timer.cancel()
            self._end_timer = None

    def on_response_complete(self) -> None:
        """Wait for the next request; a connection that closes has a while to send what is left."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_in(self.limits.send_s)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is not used."""
        super().timeout_keep_alive_handler()
        self._end_in(self.limits.send_s)

    def shutdown(self) -> None:
        """Close the connection after the request that it carries, or that may be on its way; see stopping.py."""
        self._stopping = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(self.limits.idle_at_stop_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
