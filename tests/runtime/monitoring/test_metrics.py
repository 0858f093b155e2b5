"""Metrics: what is rendered is what the table says, and callers cannot make series."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ptexport.runtime.engine.answer import BatchRecord, Timing
from ptexport.runtime.monitoring.metric_names import METRICS, OWN, PROCESS, TEI, TRITON
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.monitoring.records import Reason, RequestRecord, ServedModel, ServerState, timing_headers

ROOT = Path(__file__).parents[3]
CPU = ServedModel("city", "0123456789ab", "CPUExecutionProvider", 0, 2, "fp32", None)
TIMING = Timing(tokenise_s=0.001, queue_s=0.002, compute_s=0.004)
OPENMETRICS = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"
MODEL = {"model": "city", "version": "0123456789ab"}


def record(
    model: str = "city",
    version: str = "0123456789ab",
    code: int = 200,
    reason: Reason | None = None,
    texts: int = 1,
    timing: Timing | None = TIMING,
) -> RequestRecord:
    return RequestRecord(model, version, "http", "an-id", code, reason, texts, 7 * texts, timing, 0.008, None)


def as_markdown() -> str:
    """Return the tables of the documentation."""
    parts = []
    for title, metrics in (
        ("Triton's names", TRITON),
        ("text-embeddings-inference's names", TEI),
        ("Names of ptexport", OWN),
        ("The process", PROCESS),
    ):
        parts += [f"### {title}", "", "| metric | kind | unit | labels | what it counts |", "|---|---|---|---|---|"]
        parts += [
            f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(f'`{label}`' for label in m.labels)} | {m.meaning} |"
            for m in metrics
        ]
        parts.append("")
    return "\n".join(parts)


def make() -> Metrics:
    metrics = Metrics(lambda: ServerState(True, 3, [CPU]))
    metrics.add("city", "0123456789ab")
    return metrics


def values(metrics: Metrics, accept: str | None = None) -> Callable[..., float | None]:
    """Return a function that finds the value of a sample by name and labels; None: there is no such sample."""
    # Not with prometheus_client's parser, which appends _total to the names of counters.
    samples = {
        (name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))): float(value)
        for name, labels, value in re.findall(
            r"^(\w+)(?:\{(.*)\})? (\S+)$", metrics.render(accept)[1].decode(), re.MULTILINE
        )
    }
    return lambda name, **labels: samples.get((name, tuple(sorted(labels.items()))))


def test_each_request_is_counted_under_the_names_of_both_servers() -> None:
    metrics = make()
    metrics.request(record())
    metrics.request(record(texts=3))
    metrics.request(record(code=429, reason="REJECTED", timing=None))
    for accept in (None, OPENMETRICS):  # a query must not depend on the format that Prometheus asked for
        value = values(metrics, accept)
        assert value("nv_inference_request_success", **MODEL) == 2
        assert value("nv_inference_request_failure", **MODEL, reason="REJECTED") == 1
        assert value("nv_inference_count", **MODEL) == 4
        assert value("nv_inference_request_duration_us", **MODEL) == 16_000
        assert value("nv_inference_queue_duration_us", **MODEL) == 4_000
        assert value("nv_inference_compute_input_duration_us", **MODEL) == 2_000
        assert value("nv_inference_compute_infer_duration_us", **MODEL) == 8_000
        assert value("te_request_count", **MODEL, method="single") == 2
        assert value("te_request_success", **MODEL, method="batch") == 1
        assert value("te_request_failure", **MODEL, err="overloaded") == 1
        assert value("te_predict_count", **MODEL) == 5
        assert value("te_request_duration_count", **MODEL) == 2
        assert value("te_request_queue_duration_sum", **MODEL) == 0.004
        assert value("te_request_inference_duration_bucket", **MODEL, le="0.002") == 0
        assert value("te_request_inference_duration_bucket", **MODEL, le="0.005") == 2
        assert value("ptexport_requests_total", **MODEL, protocol="http", code="429") == 1
        assert value("ptexport_tokens_total", **MODEL) == 28


def test_batches_are_counted_with_their_padding() -> None:
    metrics = make()
    metrics.batch(BatchRecord(rows=3, tokens=20, padded_tokens=24, compute_s=0.004, waiting=0))
    metrics.batch(BatchRecord(rows=1, tokens=9, padded_tokens=9, compute_s=0.002, waiting=0))
    value = values(metrics)
    assert value("nv_inference_exec_count") == 2
    assert value("te_batch_next_size_sum") == 4
    assert value("te_batch_next_size_bucket", le="2.0") == 1
    assert value("te_batch_next_tokens_sum") == 33
    assert value("ptexport_padding_tokens_total") == 4
    assert value("ptexport_batch_duration_seconds_sum") == pytest.approx(0.006)


def test_the_state_is_read_when_the_metrics_are() -> None:
    fell_back = ServedModel("tone", "b" * 12, "CPUExecutionProvider", 0, 2, "int8", "no CUDA driver")
    state = ServerState(True, 3, [CPU])
    metrics = Metrics(lambda: state)
    assert values(metrics)("te_queue_size") == 3
    state = ServerState(False, 0, [CPU, fell_back])
    value = values(metrics)
    assert value("te_queue_size") == 0
    assert value("ptexport_ready") == 0
    assert value("ptexport_models") == 2
    assert value("ptexport_degraded", **MODEL) == 0
    assert value("ptexport_degraded", model="tone", version="b" * 12) == 1
    assert value(
        "ptexport_model_info", **MODEL, provider="CPUExecutionProvider", device="0", precision="fp32"
    ) == 1  # fmt: skip


@pytest.mark.parametrize("accept", [None, OPENMETRICS])
def test_what_is_rendered_is_what_the_table_says(accept: str | None) -> None:
    metrics = make()
    metrics.request(record())
    metrics.refused(401)
    content_type, body = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    families = list((parse_openmetrics if accept else parse_text)(body.decode()))
    rendered = {}
    for family in families:
        total = f"{family.name}_total"
        name = total if total in METRICS else family.name
        kind = "counter" if family.type == "unknown" else family.type
        rendered[name] = (kind, {frozenset(s.labels) - {"le"} for s in family.samples})
    assert rendered == {name: (m.kind, {frozenset(m.labels)}) for name, m in METRICS.items()}
    # Prometheus text calls every counter by its name; OpenMetrics has no type for one that does not end in _total.
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", body.decode(), re.MULTILINE))
    assert types["nv_inference_count"] == ("unknown" if accept else "counter")


def test_the_documentation_has_the_same_table() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert as_markdown() in page, "write docs/monitoring.md's tables from as_markdown()"


def test_requests_for_models_that_do_not_exist_make_no_series() -> None:
    metrics = make()
    lines = len(metrics.render(None)[1].splitlines())
    for i in range(100):
        metrics.request(record(model=f"made-up-{i}", version="", code=404, reason="OTHER", timing=None))
    _, body = metrics.render(None)
    assert b"made-up" not in body
    assert values(metrics)("nv_inference_request_failure", model="", version="", reason="OTHER") == 100
    assert len(body.splitlines()) == lines + 1  # the 404 under empty labels


def test_a_removed_model_is_dropped_once_its_last_request_is_answered() -> None:
    metrics = make()
    with metrics.pending(**MODEL):
        metrics.forget(**MODEL)
        assert values(metrics)("nv_inference_pending_request_count", **MODEL) == 1
        metrics.request(record())
        assert values(metrics)("nv_inference_count", **MODEL) == 1
    assert b"city" not in metrics.render(None)[1].replace(b'ptexport_model_info{device="0",model="city"', b"").replace(
        b'ptexport_degraded{model="city"', b""
    )
    metrics.request(record())  # one that finished late
    assert values(metrics)("nv_inference_count", **MODEL) is None
    assert values(metrics)("nv_inference_count", model="", version="") == 1
    assert metrics.counts() == {"answered": 2, "failed": 0, "batches": 0}


def test_a_model_that_comes_back_while_it_drains_goes_on() -> None:
    metrics = make()
    metrics.request(record())
    with metrics.pending(**MODEL):
        metrics.forget(**MODEL)
        metrics.add(**MODEL)
    assert values(metrics)("nv_inference_count", **MODEL) == 1
    assert values(metrics)("nv_inference_pending_request_count", **MODEL) == 0


def test_pending_ends_with_an_error_too() -> None:
    metrics = make()
    with pytest.raises(ValueError, match="wrong"), metrics.pending(**MODEL):
        raise ValueError("wrong")
    assert values(metrics)("nv_inference_pending_request_count", **MODEL) == 0


def test_two_servers_in_one_process_share_nothing() -> None:
    one, other = make(), make()
    one.request(record())
    assert values(one)("nv_inference_count", **MODEL) == 1
    assert values(other)("nv_inference_count", **MODEL) == 0


def test_no_count_is_lost_between_threads_while_the_metrics_are_read() -> None:
    metrics = make()

    def work() -> None:
        for _ in range(2000):
            with metrics.pending(**MODEL):
                metrics.request(record())
            metrics.batch(BatchRecord(1, 7, 7, 0.001, 0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        value = values(metrics)
        assert value("te_request_duration_count", **MODEL) == value("nv_inference_request_success", **MODEL)
    assert values(metrics)("nv_inference_count", **MODEL) == 8000
    assert values(metrics)("nv_inference_exec_count") == 8000


def test_a_request_costs_at_most_25_microseconds() -> None:
    """With one batch each, which is the most: batches hold more requests when there are many."""
    metrics, one, batch = make(), record(), BatchRecord(1, 7, 7, 0.001, 0)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(500):
            with metrics.pending(**MODEL):
                metrics.request(one)
            metrics.batch(batch)
        best = min(best, (time.perf_counter() - start) / 500)
    assert best < 25e-6


def test_the_headers_are_milliseconds() -> None:
    assert timing_headers(Timing(tokenise_s=0.0004, queue_s=0.0123456, compute_s=1.5), 1.6) == {
        "x-queue-time": "12.346",
        "x-tokenization-time": "0.400",
        "x-inference-time": "1500.000",
        "x-total-time": "1600.000",
    }
    assert timing_headers(None, 0.25) == {"x-total-time": "250.000"}
