"""What is written of a request never has its content: real requests with a marked text, label and id."""

import os
import time
from pathlib import Path

from collector import running

from ptexport.runtime import Engine
from ptexport.runtime.engine.answer import Timing
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.errors import DataError
from ptexport.runtime.monitoring.logs import Logs, request_id
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.monitoring.records import Reason, RequestRecord, ServerState
from ptexport.runtime.monitoring.tracing import HttpCall, TraceContext, open_tracer

MARK = "xylophone"
CALL = HttpCall("POST", "/predict", "/predict", "http")
CONTEXT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True, "")


def record(
    code: int, reason: Reason | None, tokens: int = 0, timing: Timing | None = None, trace: str | None = None
) -> RequestRecord:
    return RequestRecord("reviews", "1", "http", request_id(None), code, reason, 1, tokens, timing, 0.01, trace)


def test_nothing_that_is_written_has_a_requests_content(llama_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running() as collector:
        metrics = Metrics(lambda: ServerState(True, 0, []))
        metrics.add("reviews", "1")
        logs = Logs(os.open(log, os.O_CREAT | os.O_WRONLY))
        tracer = open_tracer(collector.endpoint, "1", on_lost=lambda: logs.write("traces-lost", "warning"))
        observer = Observer(metrics, logs, tracer, log_requests=True)
        with Engine.open(llama_bundle, batcher=Batcher(on_batch=metrics.batch)) as engine:
            labels = engine.task().labels
            for text in (f"{MARK} was bright", f"{MARK} {MARK}\n"):
                answer = engine.task().submit([text]).result(timeout=30)
                assert answer.tokens > 0
                observer.answered(record(200, None, answer.tokens, answer.timing, CONTEXT.trace_id), CONTEXT, CALL)
            try:
                engine.task().submit([MARK], top_k=-1)  # any error, with the text put into its message
            except DataError as e:
                logs.failed(DataError(f"{MARK}: {e}"), "r-1")
                observer.answered(record(500, "BACKEND", trace=observer.trace_id(None)), None, CALL)
        until = time.monotonic() + 5
        while b"nv_inference_exec_count 2" not in metrics.render(None)[1] and time.monotonic() < until:
            time.sleep(0.01)
        observer.close()
    assert b"nv_inference_exec_count 2" in metrics.render(None)[1]  # what follows looked at something
    assert log.read_text().count('"event":"request"') == 3
    assert log.read_text().count('"event":"error"') == 1
    assert len(collector.spans) == 2 * 4 + 1
    written = log.read_bytes() + metrics.render(None)[1] + b"".join(s.SerializeToString() for s in collector.spans)
    assert b"reviews" in written
    assert MARK.encode() not in written
    assert [label for label in labels if f'"{label}"'.encode() in written] == []


def test_without_a_tracer_the_trace_id_is_the_callers_or_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logs = Logs(os.open(log, os.O_CREAT | os.O_WRONLY))
    observer = Observer(Metrics(lambda: ServerState(True, 0, [])), logs, None, log_requests=True)
    assert observer.trace_id(None) is None
    assert observer.trace_id(CONTEXT) == CONTEXT.trace_id
    observer.answered(record(200, None, trace=CONTEXT.trace_id), CONTEXT, CALL)
    observer.close()
    assert f'"trace":"{CONTEXT.trace_id}"' in log.read_text()


def test_requests_are_logged_only_if_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logs = Logs(os.open(log, os.O_CREAT | os.O_WRONLY))
    observer = Observer(Metrics(lambda: ServerState(True, 0, [])), logs, None, log_requests=False)
    observer.answered(record(200, None), None, CALL)
    observer.close()
    assert log.read_text() == ""
