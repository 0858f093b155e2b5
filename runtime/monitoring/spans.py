"""Records of requests -> spans of OpenTelemetry, sent in the background. Imports the extra `otel`.

Of OpenTelemetry's environment variables only OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE, _CLIENT_KEY and
_CLIENT_CERTIFICATE (and their _TRACES_ forms) have an effect: they hold what a collector may ask for, and may be
secret. The others are overruled here, but for OTEL_SDK_DISABLED=true, which cannot be and is an error. Proxies of the
environment are not used.
"""

import logging
from collections.abc import Callable, Sequence
from threading import Lock, Thread

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import AttributeValue

from ptexport.runtime.errors import ServeError
from ptexport.runtime.monitoring.records import RequestRecord
from ptexport.runtime.monitoring.tracing import HttpCall, TraceContext

_EXPORT_S = 5.0
"""Seconds in which one batch of spans is sent, tries included."""

_GRPC_METHOD = "inference.GRPCInferenceService/ModelInfer"
_UNSET = SpanLimits.UNSET


class Tracer:
    """Sends one span per request, with its parts as children. Thread-safe; `tracing.open_tracer` makes one.

    Args:
        url: full address for traces.
        version: version of ptexport.
        on_lost: called once when spans cannot be sent, and again after some could be sent in between.

    Raises:
        ServeError: the environment switches OpenTelemetry off.
    """

    def __init__(self, url: str, version: str, on_lost: Callable[[], None]) -> None:
        # Its loggers would write lines of text, one for every batch, between the lines of JSON.
        logger = logging.getLogger("opentelemetry")
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        session = requests.Session()
        session.trust_env = False
        exporter = OTLPSpanExporter(
            endpoint=url, timeout=_EXPORT_S, compression=Compression.NoCompression, session=session
        )
        self._ids = _Ids()
        self._lock = Lock()
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource({"service.name": "ptexport", "service.version": version}),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(_UNSET, _UNSET, _UNSET, _UNSET, _UNSET, _UNSET, _UNSET),
        )
        self._tracer = self._provider.get_tracer("ptexport", version)
        if isinstance(self._tracer, NoOpTracer):
            raise ServeError(
                "--otlp-endpoint: got OTEL_SDK_DISABLED=true in the environment too, need one or the other; unset it"
            )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Reporting(exporter, on_lost),
                max_queue_size=2048,
                schedule_delay_millis=1000,
                max_export_batch_size=512,
                export_timeout_millis=_EXPORT_S * 1e3,
            )
        )

    def request(
        self, record: RequestRecord, context: TraceContext | None, call: HttpCall | None, ended_ns: int
    ) -> None:
        """Send the span of a request that is answered.

        Timing has durations only, so the parts stand one after the other: tokenize from the start of the request, then
        queue, then compute.

        Args:
            record: of the request; `trace` is the context's, or `tracing.new_trace_id()` if there is no context.
            context: the caller's; None: it sent none.
            call: the HTTP request; None: it came over gRPC.
            ended_ns: when it was answered, in nanoseconds since 1970.
        """
        start = ended_ns - round(record.total_s * 1e9)
        with self._lock:
            if record.trace is not None:
                self._ids.trace_id = int(record.trace, 16)
            span = self._tracer.start_span(
                _GRPC_METHOD if call is None else f"{call.method} {call.route}",
                context=_parent(context),
                kind=SpanKind.SERVER,
                attributes=_attributes(record, call),
                start_time=start,
            )
        if record.reason == "BACKEND" or record.code >= 500:
            span.set_status(StatusCode.ERROR)
        if record.timing is not None and span.is_recording():
            self._parts(span, start, record)
        span.end(ended_ns)

    def close(self, wait_s: float = 2.0) -> None:
        """Send the spans that wait, for at most `wait_s` seconds. Later spans are lost."""
        closing = Thread(target=self._provider.shutdown, name="ptexport-traces-close", daemon=True)
        closing.start()
        closing.join(wait_s)

    def _parts(self, span: Span, start: int, record: RequestRecord) -> None:
        assert record.timing is not None
        inside = set_span_in_context(span, Context())
        timing = record.timing
        for name, seconds in (
            ("tokenize", timing.tokenise_s),
            ("queue", timing.queue_s),
            ("compute", timing.compute_s),
        ):
            part = self._tracer.start_span(name, context=inside, start_time=start)
            start += round(seconds * 1e9)
            part.end(start)


class _Ids(RandomIdGenerator):
    """Gives a trace that begins here the id that its RequestRecord already has."""

    trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id or super().generate_trace_id()


class _Reporting(SpanExporter):
    """An exporter that reports the first of any failures in a row."""

    def __init__(self, inner: SpanExporter, on_lost: Callable[[], None]) -> None:
        self._inner = inner
        self._on_lost = on_lost
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            self._on_lost()
        self._failing = failed
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def _parent(context: TraceContext | None) -> Context:
    if context is None:
        return Context()
    parent = SpanContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(context.sampled),
        trace_state=TraceState.from_header([context.state]),
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _attributes(record: RequestRecord, call: HttpCall | None) -> dict[str, AttributeValue]:
    """Name what is known of a request, after OpenTelemetry's semantic conventions where they have a name."""
    attributes: dict[str, AttributeValue] = {
        "ptexport.model": record.model,
        "ptexport.version": record.version,
        "ptexport.texts": record.texts,
        "ptexport.tokens": record.tokens,
        "ptexport.request_id": record.request_id,
    }
    if call is None:
        attributes |= {"rpc.system.name": "grpc", "rpc.method": _GRPC_METHOD}
    else:
        attributes |= {
            "http.request.method": call.method,
            "http.route": call.route,
            "http.response.status_code": record.code,
            "url.path": call.path,
            "url.scheme": call.scheme,
        }
    if record.reason is not None:
        attributes["error.type"] = record.reason
    return attributes
