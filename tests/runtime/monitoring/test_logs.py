"""Logs: lines that a machine can read, that never hold a request's content, and that never stop the server."""

import json
import os
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ptexport.runtime.engine.answer import Timing
from ptexport.runtime.errors import RequestError
from ptexport.runtime.monitoring import logs
from ptexport.runtime.monitoring.logs import Logs, request_id
from ptexport.runtime.monitoring.records import RequestRecord

MARK = "a text that must not be logged"


def record(**changes: object) -> RequestRecord:
    fields: dict[str, object] = {
        "model": "city",
        "version": "0123456789ab",
        "protocol": "http",
        "request_id": "r-1",
        "code": 200,
        "reason": None,
        "texts": 2,
        "tokens": 9,
        "timing": Timing(tokenise_s=0.0001, queue_s=0.0002, compute_s=0.0034567),
        "total_s": 0.004,
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    return RequestRecord(**{**fields, **changes})  # type: ignore[arg-type]


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def opened(file: Path) -> Logs:
    return Logs(os.open(file, os.O_CREAT | os.O_WRONLY))


def test_a_line_is_one_object_with_time_level_and_event(file: Path) -> None:
    log = opened(file)
    log.write("model-swapped", "warning", model="city", old="a" * 12, new="b" * 12, seconds=0.5)
    log.close()
    [line] = lines_of(file)
    stamp = str(line.pop("time"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) < 10
    assert line == {
        "level": "warning",
        "event": "model-swapped",
        "model": "city",
        "old": "a" * 12,
        "new": "b" * 12,
        "seconds": 0.5,
    }


def test_a_request_is_one_line_of_its_record(file: Path) -> None:
    log = opened(file)
    log.request(record())
    log.request(record(code=429, reason="REJECTED", timing=None))
    log.close()
    answered, refused = lines_of(file)
    assert answered | {"time": ""} == {
        "time": "",
        "level": "info",
        "event": "request",
        "request_id": "r-1",
        "model": "city",
        "version": "0123456789ab",
        "protocol": "http",
        "code": 200,
        "reason": None,
        "texts": 2,
        "tokens": 9,
        "queue_ms": 0.2,
        "tokenize_ms": 0.1,
        "compute_ms": 3.457,
        "total_ms": 4.0,
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert refused["reason"] == "REJECTED"
    assert "queue_ms" not in refused


def test_an_error_is_logged_with_its_place_and_without_its_message(file: Path) -> None:
    log = opened(file)

    def fail() -> None:
        try:
            int(MARK)
        except ValueError as e:
            raise RequestError(f"text: got {MARK}") from e

    with pytest.raises(RequestError, match=MARK) as raised:
        fail()
    assert MARK in repr(raised.value.__cause__)
    log.failed(raised.value, "r-2")
    log.close()
    assert MARK not in file.read_text()
    [line] = lines_of(file)
    assert line["request_id"] == "r-2"
    outer, inner = line["errors"]  # type: ignore[misc]
    assert outer["type"] == "RequestError"
    assert inner["type"] == "ValueError"
    assert inner["place"][-1].endswith("test_an_error_is_logged_with_its_place_and_without_its_message.<locals>.fail")


@pytest.mark.parametrize("value", ["a\nb", '"}\n{"event":"fake"', "\x1b[2J", "\x9b2J\x7f", "\u2028", "\ud800", "\0"])
def test_a_value_can_neither_end_a_line_nor_steer_a_terminal(file: Path, value: str) -> None:
    log = opened(file)
    log.write("model-refused", source=value)
    log.close()
    written = file.read_bytes()
    assert written.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in written[:-1])
    assert json.loads(written)["source"] == value


@pytest.mark.parametrize("header", ["a", "A-1_.:/+=%", "x" * 128, "{}\\"])
def test_a_callers_request_id_is_kept(header: str) -> None:
    assert request_id(header) == header


@pytest.mark.parametrize(
    "header", [None, "", "x" * 129, "a b", 'a"', "a'", "a\n", "a\r\nb", "\x1b", "\x7f", "é", "a\t"]
)
def test_any_other_request_id_is_replaced(header: str | None) -> None:
    made = request_id(header)
    assert made != header
    assert len(made) == 32
    assert int(made, 16)
    assert made != request_id(header)


def test_a_closed_descriptor_and_a_reader_that_left_raise_nothing() -> None:
    read, write = os.pipe()
    log = Logs(write)
    os.close(read)
    log.write("ready")  # EPIPE
    time.sleep(0.05)
    os.close(write)
    log.write("ready")  # EBADF
    log.request(record())
    log.close()
    assert not log._thread.is_alive()


def test_a_full_disk_raises_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = Logs(descriptor)
    log.write("ready")
    log.close()
    assert not log._thread.is_alive()
    os.close(descriptor)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stands_still_stops_no_caller_and_lost_lines_are_counted(
    blocking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 500)
    read, write = os.pipe()
    os.set_blocking(write, blocking)
    log = Logs(write)
    seconds = []
    for _ in range(3000):  # 1 MB, into a pipe of 64 KB
        start = time.perf_counter()
        log.request(record())
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[2900] < 0.01
    log.close(wait_s=0.05)  # gives up
    assert log._thread.is_alive()
    log._closing = False
    seen = bytearray()

    def read_all() -> None:
        while chunk := os.read(read, 1 << 16):
            seen.extend(chunk)

    reader = threading.Thread(target=read_all)
    reader.start()
    while log._lines:
        time.sleep(0.01)
    log.write("stopped", requests=3000)
    log.close()
    os.close(write)
    reader.join()
    os.close(read)
    lines = [json.loads(line) for line in seen.splitlines()]
    requests = sum(line["event"] == "request" for line in lines)
    lost = [line["lines"] for line in lines if line["event"] == "lines-lost"]
    assert lost
    assert requests + sum(lost) == 3000
    assert lines[-1]["event"] == "stopped"


def test_lines_of_many_threads_stay_whole(file: Path) -> None:
    log = opened(file)
    threads = [threading.Thread(target=lambda: [log.request(record()) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(lines_of(file)) == 800
