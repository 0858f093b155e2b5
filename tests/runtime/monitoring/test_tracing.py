"""Traces: W3C trace context by its rules, and spans as a collector gets them."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from collector import Collector, running

from ptexport.runtime.engine.answer import Timing
from ptexport.runtime.errors import MissingExtraError, ServeError
from ptexport.runtime.monitoring.records import Protocol, Reason, RequestRecord
from ptexport.runtime.monitoring.tracing import (
    HttpCall,
    TraceContext,
    new_trace_id,
    open_tracer,
    trace_context,
    traces_url,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALL = HttpCall("POST", "/v2/models/{name}/infer", "/v2/models/city/infer", "http")


def record(
    trace: str | None, code: int = 200, reason: Reason | None = None, protocol: Protocol = "http"
) -> RequestRecord:
    timing = None if reason else Timing(tokenise_s=0.001, queue_s=0.002, compute_s=0.004)
    return RequestRecord("city", "0123456789ab", protocol, "r-1", code, reason, 2, 9, timing, 0.010, trace)


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"00-{TRACE}-{PARENT}-fe", False),
        (f"01-{TRACE}-{PARENT}-01", True),  # a later version may have more, which is not read
        (f"cc-{TRACE}-{PARENT}-01-what the future holds", True),
    ],
)
def test_a_valid_traceparent_is_read(header: str, sampled: bool) -> None:
    assert trace_context([header], ["a=1", "b=2"]) == TraceContext(TRACE, PARENT, sampled, "a=1,b=2")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [f"00-{TRACE}-{PARENT}-01"] * 2,
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"0-{TRACE}-{PARENT}-01"],
        [f"0g-{TRACE}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT.upper()}-01"],
        [f"00-{TRACE}-{PARENT}-0A"],
        [f"00-{TRACE[:-1]}-{PARENT}-01"],
        [f"00-{TRACE}a-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}a-01"],
        [f"00-{TRACE}-{PARENT}-1"],
        [f"00-{TRACE}-{PARENT}"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}-01-"],
        [f"01-{TRACE}-{PARENT}-01more"],
        [f"00_{TRACE}_{PARENT}_01"],
        [f" 00-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01\n"],
        [f"00-{TRACE[:-1]}\N{ARABIC-INDIC DIGIT ONE}-{PARENT}-01"],
    ],
)
def test_any_other_traceparent_is_ignored_with_its_tracestate(headers: list[str]) -> None:
    assert trace_context(headers, ["a=1"]) is None


def test_a_long_tracestate_is_left_out() -> None:
    context = trace_context([f"00-{TRACE}-{PARENT}-01"], ["a=" + "1" * 511])
    assert context == TraceContext(TRACE, PARENT, True, "")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://c.example/otlp", "https://c.example/otlp/v1/traces"),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
    ],
)
def test_the_path_for_traces_is_added(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:4318", "grpc://h:4317", "http://", "http://h:x", "http://me:secret@h:1", "http://[::1"]
)
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ServeError, match=r"^--otlp-endpoint: got .*, need .*; set ") as raised:
        traces_url(endpoint)
    assert "secret" not in str(raised.value)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running() as server:
        yield server


def attributes_of(span: Any) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_below_the_callers_with_its_parts_below_it(collector: Collector) -> None:
    tracer = open_tracer(collector.endpoint, "1.2.3", on_lost=lambda: None)
    ended = time.time_ns()
    tracer.request(record(TRACE), TraceContext(TRACE, PARENT, True, "a=1,b=2"), CALL, ended)
    tracer.close()
    assert collector.resources == [{"service.name": "ptexport", "service.version": "1.2.3"}]
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"POST /v2/models/{name}/infer", "tokenize", "queue", "compute"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    server = spans.pop("POST /v2/models/{name}/infer")
    assert server.parent_span_id.hex() == PARENT
    assert server.trace_state == "a=1,b=2"
    assert server.kind == server.SPAN_KIND_SERVER
    assert server.status.code == server.status.STATUS_CODE_UNSET
    assert server.end_time_unix_nano == ended
    assert ended - server.start_time_unix_nano == 10_000_000
    assert attributes_of(server) == {
        "ptexport.model": "city",
        "ptexport.version": "0123456789ab",
        "ptexport.texts": 2,
        "ptexport.tokens": 9,
        "ptexport.request_id": "r-1",
        "http.request.method": "POST",
        "http.route": "/v2/models/{name}/infer",
        "http.response.status_code": 200,
        "url.path": "/v2/models/city/infer",
        "url.scheme": "http",
    }
    assert {span.parent_span_id for span in spans.values()} == {server.span_id}
    start = server.start_time_unix_nano
    for name, ms in (("tokenize", 1), ("queue", 2), ("compute", 4)):
        assert spans[name].start_time_unix_nano == start
        start += ms * 1_000_000
        assert spans[name].end_time_unix_nano == start
        assert spans[name].kind == spans[name].SPAN_KIND_INTERNAL


def test_a_trace_that_begins_here_has_the_id_that_the_logs_have(collector: Collector) -> None:
    tracer = open_tracer(collector.endpoint, "1", on_lost=lambda: None)
    ids = [new_trace_id() for _ in range(3)]
    for trace in ids:
        tracer.request(record(trace, code=503, reason="BACKEND", protocol="grpc"), None, None, time.time_ns())
    tracer.close()
    assert [span.trace_id.hex() for span in collector.spans] == ids  # no parts: it reached no batch
    for span in collector.spans:
        assert span.name == "inference.GRPCInferenceService/ModelInfer"
        assert not span.parent_span_id
        assert span.status.code == span.status.STATUS_CODE_ERROR
        attributes = attributes_of(span)
        assert attributes["error.type"] == "BACKEND"
        assert attributes["rpc.system.name"] == "grpc"


def test_a_caller_that_does_not_sample_is_not_sampled(collector: Collector) -> None:
    tracer = open_tracer(collector.endpoint, "1", on_lost=lambda: None)
    tracer.request(record(TRACE), TraceContext(TRACE, PARENT, False, ""), CALL, time.time_ns())
    tracer.close()
    assert collector.spans == []


def test_the_environment_adds_headers_and_changes_nothing_else(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.000001",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_SERVICE_NAME": "another",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "-1",
        "OTEL_BSP_MAX_QUEUE_SIZE": "0",
        "http_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    tracer = open_tracer(collector.endpoint, "1", on_lost=lambda: None)
    tracer.request(record(TRACE), TraceContext(TRACE, PARENT, True, ""), CALL, time.time_ns())
    tracer.close()
    assert len(collector.spans) == 4
    assert len(collector.spans[-1].attributes) == 10
    assert collector.resources == [{"service.name": "ptexport", "service.version": "1"}]
    assert collector.headers[0]["authorization"] == "Bearer abc"
    assert "content-encoding" not in collector.headers[0]


def test_opentelemetry_switched_off_by_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with pytest.raises(ServeError, match="OTEL_SDK_DISABLED"):
        open_tracer("http://127.0.0.1:4318", "1", on_lost=lambda: None)


def test_a_collector_that_is_away_is_reported_once_and_holds_nobody_up(capfd: pytest.CaptureFixture[str]) -> None:
    lost = threading.Semaphore(0)
    tracer = open_tracer("http://127.0.0.1:9", "1", on_lost=lost.release)
    seconds = []
    for _ in range(1000):  # 4,000 spans, twice what may wait
        start = time.perf_counter()
        tracer.request(record(TRACE), TraceContext(TRACE, PARENT, True, ""), CALL, time.time_ns())
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[950] < 0.01
    start = time.perf_counter()
    tracer.close(wait_s=0.2)
    assert time.perf_counter() - start < 1.0
    assert lost.acquire(timeout=8)
    assert not lost.acquire(timeout=0.2)
    assert capfd.readouterr() == ("", "")


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ptexport.runtime.monitoring.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ptexport\[otel\]'"):
        open_tracer("http://127.0.0.1:4318", "1", on_lost=lambda: None)


def test_trace_ids_need_no_package() -> None:
    program = (
        "import sys; from ptexport.runtime.monitoring import logs, records, tracing; "
        f"assert tracing.trace_context(['00-{TRACE}-{PARENT}-01'], []).trace_id == '{TRACE}'; "
        "sys.exit(bool({'opentelemetry', 'requests', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
