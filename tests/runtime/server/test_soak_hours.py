"""Half an hour of everything at once: memory, descriptors and threads stay as they are after a warm-up."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from soaking import GOLDEN, Clients, Server, ask, server, slope_per_hour, wait_for
from tiny import sample

LEAK = """
from ptexport.runtime.serving import service
kept = []
ask = service.Service._ask
def leaky(self, *given, **named):
    kept.append(bytearray(40_000))
    return ask(self, *given, **named)
service.Service._ask = leaky
"""


def disturb(running: Server, stopping: threading.Event) -> None:
    """Send what is wrong, read metrics and metadata, and hang up."""
    choose = random.Random(1)
    wrong = [{"texts": "slow"}, {"texts": [1]}, {"texts": ["slow"], "task": "none"}, {"texts": ["slow"] * 5000}]
    while not stopping.wait(0.02):
        kind = choose.randrange(4)
        if kind == 0:
            assert 400 <= ask(running.url, "POST", "/predict", choose.choice(wrong))[0] < 500
        elif kind == 1:
            assert ask(running.url, "GET", choose.choice(["/v2", "/v2/models/reviews", "/openapi.json"]))[0] == 200
        elif kind == 2:
            tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["slow"]}
            assert ask(running.url, "POST", "/v2/models/reviews/infer", {"inputs": [tensor]})[0] == 200
        else:
            host, port = running.url.removeprefix("http://").split(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as connection:
                connection.sendall(
                    b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19\r\n\r\n{"texts": ["slo'
                )


@contextlib.contextmanager
def disturbed(running: Server) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=disturb, args=(running, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def measure(running: Server, warm_up_s: float, seconds: float) -> tuple[float, list[tuple[float, int, int]]]:
    """Return the slope of resident memory in MB per hour, and each state after the warm-up."""
    states = []
    with Clients(running.url, 4, pause_s=0.002) as clients, disturbed(running):
        time.sleep(warm_up_s)
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            states.append((now, running.state()))
            time.sleep(seconds / 200)
    assert clients.outcomes.keys() == {200}, (clients.outcomes, clients.errors[:3])
    slope = slope_per_hour([(now, memory) for now, (memory, _, _) in states])
    print(f"{len(clients.took):,} requests in {seconds:g} s: {slope:.2f} MB/h")
    return slope, [state for _, state in states]


@pytest.mark.parametrize(("warm_up_s", "seconds", "most"), sample([(3, 5, 5000), (300, 1800, 1)], (3, 5, 5000)))
def test_memory_descriptors_and_threads_stay_flat(warm_up_s: float, seconds: float, most: float) -> None:
    """`most` is in MB per hour; that of the short form finds a leak of 1.4 MB per second."""
    with server(GOLDEN) as running:
        slope, states = measure(running, warm_up_s, seconds)
        assert slope <= most
        open_, threads = ([state[which] for state in states] for which in (1, 2))
        third = len(states) // 3
        assert max(open_[-third:]) <= max(open_[:third]) + 2
        assert max(threads[-third:]) <= max(threads[:third])
        wait_for(lambda: running.state()[1] <= min(open_))
        assert not running.logged("error")


def test_a_server_that_leaks_is_noticed() -> None:
    """The control."""
    with server(GOLDEN, code=LEAK) as running:
        assert measure(running, 1, 3)[0] > 5000
