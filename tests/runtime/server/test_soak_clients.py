"""Clients that die or dawdle, and disks that are full: others get their answers meanwhile."""

import contextlib
import json
import random
import socket
import statistics
import struct
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packed import pack_of, variant
from soaking import GOLDEN, Clients, Server, ask, server, wait_for

BODY = json.dumps({"texts": ["slow"]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
SHORT_LIMITS = """
from ptexport.runtime.guard import limits
from ptexport.runtime.guard.connections import Connection, ConnectionLimits
Connection.limits = ConnectionLimits(head_s=1.0)
limits.LimitBodies.__init__.__kwdefaults__["seconds"] = 1.0
"""
"""A head and a body may take a second each."""


@pytest.fixture(scope="module")
def llama_pack(llama_bundle: Path, llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of `llama_bundle`."""
    return pack_of(llama_bundle, llama_run, tmp_path_factory.mktemp("packs") / "task.ptpack")


def connect(running: Server) -> socket.socket:
    where = urlsplit(running.url)
    return socket.create_connection((where.hostname, where.port), timeout=10)


def reset(connection: socket.socket) -> None:
    """Close a connection as the kernel does for a process that is killed with unread data."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_clients_that_are_killed_amid_their_requests_leave_nothing_behind() -> None:
    with server(GOLDEN) as running, Clients(running.url, 2) as clients:
        wait_for(lambda: len(clients.took) > 50)
        before = running.state()
        choose = random.Random(0)
        for _ in range(300):
            connection = connect(running)
            connection.sendall((HEAD + BODY)[: choose.randint(1, len(HEAD + BODY))])
            reset(connection)
        clients.stop()
        assert clients.outcomes.keys() == {200}, (clients.outcomes, clients.errors[:3])
        wait_for(lambda: running.state()[1] <= before[1])
        assert running.state()[2] <= before[2] + 2, "threads"
        assert not running.logged("error")
        assert ask(running.url, "POST", "/predict", {"texts": ["slow"]})[0] == 200


def test_slow_clients_are_refused_and_the_others_do_not_notice() -> None:
    """Slow-loris: 300 connections send a byte of their head or their body now and then."""
    with server(GOLDEN, code=SHORT_LIMITS) as running:
        with Clients(running.url, 2, pause_s=0.005) as clients:
            time.sleep(1)
        alone_s = statistics.median(seconds for _, seconds in clients.took)
        slow = [(connect(running), number % 2) for number in range(300)]
        answers: list[bytes] = []

        def dawdle() -> None:
            for connection, in_body in slow:
                connection.sendall(HEAD if in_body else HEAD[:5])
            for place in range(8):
                for connection, in_body in slow:
                    with contextlib.suppress(OSError):  # it has been refused and closed
                        connection.sendall((BODY if in_body else HEAD[5:])[place : place + 1])
                time.sleep(0.2)
            for connection, _ in slow:
                with contextlib.suppress(OSError):
                    answers.append(connection.recv(4096))
                connection.close()

        thread = threading.Thread(target=dawdle)
        with Clients(running.url, 2, pause_s=0.005) as clients:
            thread.start()
            thread.join()
        assert clients.outcomes.keys() == {200}
        meanwhile_s = statistics.median(seconds for _, seconds in clients.took)
        print(f"median {alone_s * 1e3:.1f} ms alone, {meanwhile_s * 1e3:.1f} ms beside 300 slow clients")
        assert meanwhile_s < 5 * alone_s
        refused = sum(answer.startswith(b"HTTP/1.1 408") for answer in answers)
        assert refused > 250, answers[:3]


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
"""No byte can be written into any file, as on a full disk."""


def test_a_full_disk_stops_neither_answers_nor_packs(llama_bundle: Path, llama_pack: Path, tmp_path: Path) -> None:
    """Its log is on the full disk too (/dev/full fails each write with ENOSPC), and so is its cache."""
    watched = tmp_path / "watched"
    watched.mkdir()
    with Path("/dev/full").open("w") as full:
        arguments = (llama_bundle, "--watch", watched, "--log-requests")
        with server(*arguments, code=FULL, stderr=full) as running, Clients(running.url, 2) as clients:
            wait_for(lambda: len(clients.took) > 50)
            variant(llama_pack, llama_bundle, watched / "tips.ptpack", 100.0, name="tips")
            asked = {"texts": ["slow"], "task": "tips"}
            wait_for(lambda: ask(running.url, "POST", "/predict", asked)[0] == 200)
            clients.stop()
            assert clients.outcomes.keys() <= {200, 400}, (clients.outcomes, clients.errors[:3])
            running.process.terminate()
            assert running.process.wait(20) == 0
