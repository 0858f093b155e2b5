"""`traceparent` of a caller -> TraceContext; address of a collector -> Tracer.

The trace id of a caller stands in the logs without any package. Spans need the extra `otel`, imported by `open_tracer`.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ptexport.runtime.errors import MissingExtraError, ServeError

if TYPE_CHECKING:
    from ptexport.runtime.monitoring.spans import Tracer

_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<parent>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)
_MAX_STATE = 512
"""Characters of `tracestate` that the standard asks for; a longer one is left out."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """What a caller says of its trace.

    Attributes:
        trace_id: 32 hex digits.
        parent_id: the caller's span, 16 hex digits.
        sampled: whether the caller records its span.
        state: its `tracestate`, as it came; "" if there is none.
    """

    trace_id: str
    parent_id: str
    sampled: bool
    state: str


@dataclass(frozen=True, slots=True)
class HttpCall:
    """What a span says of an HTTP request.

    Attributes:
        method: such as "POST".
        route: the route's pattern, such as "/v2/models/{name}/infer".
        path: the path that was asked for, without a query.
        scheme: "http" or "https".
    """

    method: str
    route: str
    path: str
    scheme: str


def trace_context(traceparents: Sequence[str], tracestates: Sequence[str]) -> TraceContext | None:
    """Read W3C trace context.

    Args:
        traceparents: values of every `traceparent` header.
        tracestates: values of every `tracestate` header, in order.

    Returns:
        The context; None if there is not exactly one `traceparent`, or it is not valid.
    """
    if len(traceparents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(traceparents[0])
    if found is None or (found["version"] == "00" and found["rest"] is not None):
        return None
    state = ",".join(tracestates)
    return TraceContext(
        trace_id=found["trace"],
        parent_id=found["parent"],
        sampled=bool(int(found["flags"], 16) & 1),
        state=state if len(state) <= _MAX_STATE else "",
    )


def new_trace_id() -> str:
    """Return the id of a trace that begins here: 32 hex digits."""
    return os.urandom(16).hex()


def traces_url(endpoint: str) -> str:
    """Return the address to which traces are sent.

    Args:
        endpoint: address of a collector, such as "http://localhost:4318"; its path for traces may be left out.

    Raises:
        ServeError: it is not an address, or has a name and password.
    """
    try:
        parts = urlsplit(endpoint)
        good = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        good = False
    if not good:
        raise ServeError(
            "--otlp-endpoint: got something else, need http://HOST:PORT or https://HOST:PORT without a password; "
            "set OTEL_EXPORTER_OTLP_HEADERS to authenticate"
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith("/v1/traces") else f"{path}/v1/traces"
    return parts._replace(path=path, fragment="").geturl()


def open_tracer(endpoint: str, version: str, on_lost: Callable[[], None]) -> "Tracer":
    """Begin to send spans.

    Args:
        endpoint: as `traces_url` takes it.
        version: version of ptexport.
        on_lost: called once when spans cannot be sent, and again after some could be sent in between; on a thread of
            the exporter.

    Raises:
        MissingExtraError: the extra `otel` is not installed.
        ServeError: the endpoint is not an address, or the environment switches OpenTelemetry off.
    """
    url = traces_url(endpoint)
    try:
        from ptexport.runtime.monitoring.spans import Tracer
    except ImportError as e:
        raise MissingExtraError(f"traces need the package {e.name!r}; pip install 'ptexport[otel]'") from e
    return Tracer(url, version, on_lost)
