"""The report at start: everything that decides what runs where, for people and as JSON."""

import json

import msgspec

from ptexport.runtime.monitoring.records import ServedModel
from ptexport.runtime.monitoring.start_report import StartReport

REPORT = StartReport(
    addresses=["https://127.0.0.1:8000", "grpc://127.0.0.1:8001"],
    models=[
        ServedModel("city", "0123456789ab", "CPUExecutionProvider", 0, 2, "int8", "no CUDA driver"),
        ServedModel("sentiment", "ba9876543210", "CUDAExecutionProvider", 1, 2, "fp16", None),
    ],
    watch="/srv/packs",
    max_batch_tokens=16384,
    max_delay_ms=0.0,
    max_queue=512,
    limits={"body bytes": 1048576, "texts": 1000},
    token=True,
    tls=True,
    traces="http://localhost:4318/v1/traces",
    log_requests=True,
    versions={"ptexport": "0.1.0", "onnxruntime": "1.31.1"},
)


def test_the_lines_say_what_runs_where() -> None:
    assert "\n".join(REPORT.lines()) == (
        "versions   ptexport 0.1.0, onnxruntime 1.31.1\n"
        "models     city       0123456789ab  CPU, 2 threads, int8\n"
        "                      on the CPU because: no CUDA driver\n"
        "           sentiment  ba9876543210  CUDA, device 1, fp16\n"
        "watch      /srv/packs\n"
        "batches    at most 16,384 tokens, waiting at most 0 ms for more\n"
        "queue      512 texts\n"
        "limits     body bytes 1,048,576, texts 1,000\n"
        "access     token, TLS\n"
        "traces     http://localhost:4318/v1/traces\n"
        "logs       every request\n"
        "listening  https://127.0.0.1:8000\n"
        "           grpc://127.0.0.1:8001"
    )


def test_what_is_off_is_left_out_or_said() -> None:
    bare = msgspec.structs.replace(
        REPORT,
        models=[],
        watch=None,
        max_batch_tokens=None,
        max_queue=None,
        token=False,
        tls=False,
        traces=None,
        log_requests=False,
    )
    lines = bare.lines()
    assert "models     none yet" in lines
    assert "batches    as large as suits the device, waiting at most 0 ms for more" in lines
    assert "access     no token, no TLS" in lines
    assert not [line for line in lines if line.startswith(("watch", "traces", "logs"))]


def test_the_json_has_all_that_the_lines_have() -> None:
    report = json.loads(json.dumps(REPORT.as_dict()))
    assert set(report) == set(StartReport.__struct_fields__)
    assert report["models"][0] == {
        "name": "city",
        "version": "0123456789ab",
        "provider": "CPUExecutionProvider",
        "device": 0,
        "threads": 2,
        "precision": "int8",
        "degraded": "no CUDA driver",
    }
    assert report["limits"] == {"body bytes": 1048576, "texts": 1000}
