"""SIGTERM under load: every request that the server took has its answer."""

import time

import pytest
from soaking import GOLDEN, Clients, Server, server
from tiny import sample


def stop_under_load(running: Server, delay_s: float) -> Clients:
    with Clients(running.url, 6) as clients:
        time.sleep(delay_s)
        running.process.terminate()
        clients.wait()
    assert running.wait() == 0
    return clients


@pytest.mark.parametrize("times", sample([3, 100], 3))
def test_sigterm_under_load_loses_no_request(times: int) -> None:
    total = 0
    for number in range(times):
        with server(GOLDEN) as running:
            clients = stop_under_load(running, 0.2 + 0.3 * (number * 0.618 % 1))
            (stopped,) = running.logged("stopped")
        assert clients.outcomes.keys() <= {200, "refused"}, clients.outcomes
        assert (stopped["answered"], stopped["failed"]) == (clients.outcomes[200], 0)
        total += clients.outcomes[200]
    assert total > 10 * times


def test_a_kill_under_load_is_noticed() -> None:
    """The control."""
    with server(GOLDEN) as running, Clients(running.url, 6) as clients:
        time.sleep(0.3)
        running.process.kill()
        clients.wait()
        running.wait()
        assert not running.logged("stopped")
    assert clients.outcomes["broken"] > 0


SLOW = """
import time
from ptexport.runtime.ort import graph
from ptexport.runtime.server import listen
listen.DRAIN_S = 1
run = graph.Graph.run
graph.Graph.run = lambda self, ids: (time.sleep(1.5), run(self, ids))[1]
"""


def test_requests_that_are_given_up_are_counted_as_failed() -> None:
    """The control of the counts: a batch takes longer here than the server may take to finish."""
    with server(GOLDEN, code=SLOW) as running:
        clients = stop_under_load(running, 0.3)
        (stopped,) = running.logged("stopped")
    assert clients.outcomes[503] == stopped["failed"] > 0
    assert clients.outcomes[200] == stopped["answered"]
