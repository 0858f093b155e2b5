"""Signals to a server process: the first lets it finish, the second ends it; and uvicorn alone as the control."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from raw import connect, read_all, read_one, status_of

SCRIPT = """
import asyncio, os, signal, socket, sys, time
from pathlib import Path
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from ptexport.runtime.guard.connections import Connection, ConnectionLimits
from ptexport.runtime.server.stopping import StoppableServer

folder, kind = Path(sys.argv[1]), sys.argv[2]

class Quick(Connection):
    limits = ConnectionLimits(idle_at_stop_s=0.4)

async def ready(_):
    stopping = server.is_stopping if kind != "plain" else False
    return PlainTextResponse("stopping" if stopping else "ready", 503 if stopping else 200)

async def slow(request):
    (folder / "begun").touch()
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("finished")

async def block(request):
    (folder / "begun").touch()
    time.sleep(0.5)
    return PlainTextResponse("finished")

async def started():
    (folder / "port").write_text(str(listener.getsockname()[1]))
    (folder / "port").rename(folder / "ready")

async def stopped():
    await asyncio.sleep(0.3)
    print("beside: stopped")

listener = socket.create_server(("127.0.0.1", 0))
app = Starlette(routes=[Route("/ready", ready), Route("/slow", slow), Route("/block", block)])
config = uvicorn.Config(
    app, http=Quick, loop="uvloop", ws="none", lifespan="off", log_level="critical", timeout_graceful_shutdown=1
)
if kind == "plain":
    class Announcing(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            await started()
    config.http = "httptools"
    Announcing(config).run(sockets=[listener])
else:
    server = StoppableServer(config, on_start=started, on_stop=[stopped])
    server.run_until_stopped(listener)
print("returned")
sys.stdout.flush()
os._exit(0)
"""
GET = b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"


def slow(seconds: float) -> bytes:
    return b"GET /slow?s=%g HTTP/1.1\r\nHost: a\r\n\r\n" % seconds


@contextmanager
def running(folder: Path, kind: str = "ours") -> Iterator[tuple["subprocess.Popen[str]", int]]:
    command = [sys.executable, "-c", SCRIPT, str(folder), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(folder / "ready", process)
        yield process, int((folder / "ready").read_text())
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begin(folder: Path, process: "subprocess.Popen[str]", port: int, request: bytes) -> socket.socket:
    """Send a request and wait until the application has it."""
    connection = connect(port)
    connection.sendall(request)
    wait_for(folder / "begun", process)
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_requests_finish(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as (process, port):
        with begin(tmp_path, process, port, slow(0.5)) as connection:
            process.send_signal(number)
            response = read_all(connection)
        assert (status_of(response), response.endswith(b"finished")) == (200, True)
        assert b"\r\nconnection: close\r\n" in response
        assert process.communicate(timeout=5) == ("beside: stopped\nreturned\n", "")
        assert process.returncode == 0


def test_a_request_on_its_way_on_an_open_connection_is_answered(tmp_path: Path) -> None:
    """A client cannot know that the server stops: what it sends on a live connection is not lost."""
    with running(tmp_path) as (process, port), connect(port) as live, connect(port) as idle:
        live.sendall(GET)
        assert read_one(live).endswith(b"ready")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.25)  # uvicorn looks every 0.1 s whether it should stop
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        live.sendall(GET)
        response = read_all(live)
        assert (status_of(response), response.endswith(b"stopping")) == (503, True)
        assert b"\r\nconnection: close\r\n" in response
        assert read_all(idle) == b""
        assert process.wait(timeout=2) == 0


def test_uvicorn_alone_loses_a_request_on_its_way(tmp_path: Path) -> None:
    with running(tmp_path, "plain") as (process, port), connect(port) as live:
        live.sendall(GET)
        assert read_one(live).endswith(b"ready")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
        with suppress(BrokenPipeError, ConnectionResetError):
            live.sendall(GET)
        assert read_all(live) == b""


@pytest.mark.parametrize(("kind", "statuses"), [("ours", {503}), ("plain", {0})])
def test_connections_that_wait_to_be_accepted_are_answered(tmp_path: Path, kind: str, statuses: set[int]) -> None:
    """The client is connected and has sent its request; uvicorn alone, the control, lets the kernel reset it."""
    with running(tmp_path, kind) as (process, port), ExitStack() as stack:
        busy = stack.enter_context(begin(tmp_path, process, port, b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n"))
        waiting = [stack.enter_context(connect(port)) for _ in range(5)]
        for connection in waiting:
            connection.sendall(GET)
        process.send_signal(signal.SIGTERM)
        assert read_all(busy).endswith(b"finished")
        assert {status_of(read_all(connection)) for connection in waiting} == statuses


def test_a_request_that_does_not_finish_delays_the_end_no_longer_than_allowed(tmp_path: Path) -> None:
    with running(tmp_path) as (process, port):
        with begin(tmp_path, process, port, slow(60)):
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert process.wait(timeout=5) == 0
        assert 0.9 < time.monotonic() - started < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as (process, port), begin(tmp_path, process, port, slow(60)):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=5) == 128 + number
        assert time.monotonic() - started < 0.3


def test_a_signal_before_the_server_runs_is_not_lost(tmp_path: Path) -> None:
    script = SCRIPT.replace("    server.run_until_stopped(listener)", EARLY)
    command = [sys.executable, "-c", script, str(tmp_path), "ours"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (process.stdout, process.stderr, process.returncode) == ("beside: stopped\nreturned\n", "", 0)


EARLY = """
    run = server.run
    def signalled(sockets):
        os.kill(os.getpid(), signal.SIGTERM)
        run(sockets)
    server.run = signalled
    server.run_until_stopped(listener)
"""
