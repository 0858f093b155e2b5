"""Every metric: name, kind, unit, labels, meaning. The documentation's table is made from this one."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MetricName:
    """One metric.

    Attributes:
        name: as written in a query; of a histogram without `_bucket`, `_sum` and `_count`.
        kind: what it is.
        unit: of its value.
        labels: names of its labels.
        meaning: one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str


_MODEL = ("model", "version")

TRITON = (
    MetricName("nv_inference_request_success", "counter", "requests", _MODEL, "Requests that were answered."),
    MetricName(
        "nv_inference_request_failure",
        "counter",
        "requests",
        (*_MODEL, "reason"),
        "Requests that failed: REJECTED (queue full), CANCELED (client gone or deadline passed), BACKEND (fault of the "
        "server) or OTHER (fault of the request).",
    ),
    MetricName("nv_inference_count", "counter", "texts", _MODEL, "Texts of answered requests."),
    MetricName("nv_inference_exec_count", "counter", "batches", (), "Batches; one may hold texts for several models."),
    MetricName(
        "nv_inference_request_duration_us", "counter", "microseconds", _MODEL, "Time of answered requests, summed."
    ),
    MetricName("nv_inference_queue_duration_us", "counter", "microseconds", _MODEL, "Their time in queues, summed."),
    MetricName(
        "nv_inference_compute_input_duration_us", "counter", "microseconds", _MODEL, "Their time in tokenising, summed."
    ),
    MetricName(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "microseconds",
        _MODEL,
        "Time of the batches that had their texts, summed over requests.",
    ),
    MetricName(
        "nv_inference_pending_request_count", "gauge", "requests", _MODEL, "Requests accepted and not answered yet."
    ),
)
"""Names of Triton Inference Server."""

TEI = (
    MetricName(
        "te_request_count",
        "counter",
        "requests",
        (*_MODEL, "method"),
        "All requests, with one text (single) or not (batch).",
    ),
    MetricName("te_request_success", "counter", "requests", (*_MODEL, "method"), "Requests that were answered."),
    MetricName(
        "te_request_failure",
        "counter",
        "requests",
        (*_MODEL, "err"),
        "Requests that failed: overloaded, dropped, inference or validation, in the order of Triton's reasons above.",
    ),
    MetricName("te_predict_count", "counter", "texts", _MODEL, "Texts of all requests."),
    MetricName("te_predict_success", "counter", "texts", _MODEL, "Texts of answered requests."),
    MetricName("te_request_duration", "histogram", "seconds", _MODEL, "Time of an answered request."),
    MetricName("te_request_queue_duration", "histogram", "seconds", _MODEL, "Its time in queues."),
    MetricName("te_request_tokenization_duration", "histogram", "seconds", _MODEL, "Its time in tokenising."),
    MetricName(
        "te_request_inference_duration", "histogram", "seconds", _MODEL, "Time of the batches that had its texts."
    ),
    MetricName("te_queue_size", "gauge", "texts", (), "Texts submitted and not answered yet."),
    MetricName("te_batch_next_size", "histogram", "rows", (), "Rows of a batch."),
    MetricName("te_batch_next_tokens", "histogram", "tokens", (), "Tokens of a batch, with padding."),
)
"""Names of text-embeddings-inference."""

OWN = (
    MetricName(
        "ptexport_requests_total",
        "counter",
        "requests",
        (*_MODEL, "protocol", "code"),
        "All requests by HTTP status; over gRPC by the status that HTTP would have.",
    ),
    MetricName(
        "ptexport_refused_total",
        "counter",
        "requests",
        ("code",),
        "Requests, calls and connections refused before they reached a route (token, limits, host), by HTTP status.",
    ),
    MetricName("ptexport_tokens_total", "counter", "tokens", _MODEL, "Tokens of answered requests, without padding."),
    MetricName("ptexport_padding_tokens_total", "counter", "tokens", (), "Padding in batches."),
    MetricName("ptexport_batch_duration_seconds", "histogram", "seconds", (), "Time of a batch."),
    MetricName("ptexport_ready", "gauge", "1 or 0", (), "Whether requests are accepted."),
    MetricName("ptexport_models", "gauge", "models", (), "Models that can be asked."),
    MetricName(
        "ptexport_model_info",
        "gauge",
        "1",
        (*_MODEL, "provider", "device", "precision"),
        "Where a model runs; always 1.",
    ),
    MetricName(
        "ptexport_degraded", "gauge", "1 or 0", _MODEL, "Whether a model runs on the CPU because no GPU could load it."
    ),
)
"""Names of no other server."""

PROCESS = (
    MetricName("process_resident_memory_bytes", "gauge", "bytes", (), "Resident memory."),
    MetricName("process_virtual_memory_bytes", "gauge", "bytes", (), "Virtual memory."),
    MetricName("process_cpu_seconds_total", "counter", "seconds", (), "Time of all CPUs."),
    MetricName("process_start_time_seconds", "gauge", "seconds", (), "Start of the process, since 1970."),
    MetricName("process_open_fds", "gauge", "descriptors", (), "Open descriptors."),
    MetricName("process_max_fds", "gauge", "descriptors", (), "Descriptors that may be open."),
    MetricName("process_threads", "gauge", "threads", (), "Threads."),
)
"""Names of every Prometheus client, and `process_threads`. Read from /proc, so on Linux only."""

METRICS = {metric.name: metric for metric in (*TRITON, *TEI, *OWN, *PROCESS)}
