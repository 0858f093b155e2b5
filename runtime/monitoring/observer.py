"""The end of a request -> metrics, its line in the log and its span."""

import time
from typing import TYPE_CHECKING

from ptexport.runtime.monitoring.logs import Logs
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.monitoring.records import RequestRecord
from ptexport.runtime.monitoring.tracing import HttpCall, TraceContext, new_trace_id

if TYPE_CHECKING:
    from ptexport.runtime.monitoring.spans import Tracer


class Observer:
    """Tells everyone who wants to know what became of a request. Thread-safe.

    Args:
        metrics: count every request.
        logs: have a line for every request if `log_requests`, and for every error that was not foreseen.
        tracer: sends a span for every request; None: no traces are exported.
        log_requests: whether every request is logged.
    """

    def __init__(self, metrics: Metrics, logs: Logs, tracer: "Tracer | None", *, log_requests: bool) -> None:
        self.metrics = metrics
        self.logs = logs
        self._tracer = tracer
        self._log_requests = log_requests

    def trace_id(self, context: TraceContext | None) -> str | None:
        """Return the trace id for a request's record: the caller's, or a new one if traces are exported."""
        if context is not None:
            return context.trace_id
        return None if self._tracer is None else new_trace_id()

    def answered(self, record: RequestRecord, context: TraceContext | None, call: HttpCall | None) -> None:
        """Take note of a request that was just answered, in about 20 microseconds without a tracer.

        Args:
            record: of the request; its `trace` is from `trace_id`.
            context: the caller's; None: it sent none.
            call: the HTTP request; None: it came over gRPC.
        """
        self.metrics.request(record)
        if self._log_requests:
            self.logs.request(record)
        if self._tracer is not None:
            self._tracer.request(record, context, call, time.time_ns())

    def close(self) -> None:
        """Send the spans and write the lines that wait, in at most 3 seconds."""
        if self._tracer is not None:
            self._tracer.close()
        self.logs.close()
