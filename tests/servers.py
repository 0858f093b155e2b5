"""The application without a process, and `ptexport serve` in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from starlette.applications import Starlette

from ptexport.runtime import Engine
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.monitoring.logs import Logs
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.monitoring.observer import Observer
from ptexport.runtime.monitoring.records import RequestRecord, ServerState
from ptexport.runtime.server.app import make_app
from ptexport.runtime.serving.models import Models
from ptexport.runtime.serving.service import Service

SERVE = "from ptexport.toolkit.cli.main import main; main()"
COMMAND = [sys.executable, "-c", SERVE, "serve"]


class Kept(Observer):
    """An observer that keeps the records of requests."""

    def __init__(self) -> None:
        super().__init__(
            Metrics(lambda: ServerState(ready=True, waiting=0, models=[])), Logs(), None, log_requests=False
        )
        self.records: list[RequestRecord] = []

    def answered(self, record: RequestRecord, *others: Any) -> None:
        super().answered(record, *others)
        self.records.append(record)


def service_of(*engines: Engine, batcher: Batcher | None = None) -> Service:
    """Serve engines in this process, with the first one's batcher."""
    models = Models()
    for number, engine in enumerate(engines):
        models.put(str(number), engine)
    metrics = Metrics(lambda: ServerState(ready=True, waiting=0, models=[]))
    return Service(models, batcher or engines[0]._state.get().batcher, metrics)


def app_of(
    *engines: Engine, observer: Observer | None = None, is_ready: Callable[[], bool] = lambda: True
) -> Starlette:
    """Make an application without a process, for Starlette's TestClient."""
    return make_app(service_of(*engines), observer or Kept(), is_ready)


def start(
    *arguments: object, code: str = "", stderr: IO[str] | int = subprocess.PIPE
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `ptexport serve` on free ports; returns the process and what it prints of itself with --json.

    Args:
        arguments: of the command.
        code: run before it, for example to slow it down.
        stderr: where its log goes.
    """
    command = [sys.executable, "-c", code + SERVE, "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    return process, json.loads(line)


def check_success(process: "subprocess.Popen[str]") -> None:
    """It has been told to stop: it does, with success, and says nothing else (least of all anybody's text)."""
    out, logged = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert [json.loads(line)["event"] for line in logged.splitlines()] == ["stopping", "stopped"], logged


@contextmanager
def serving(*arguments: object, code: str = "") -> Iterator[dict[str, Any]]:
    """Serve while the block runs, and stop quietly then."""
    process, record = start(*arguments, code=code)
    try:
        yield record
        process.terminate()
        check_success(process)
    finally:
        process.kill()
        process.communicate()
