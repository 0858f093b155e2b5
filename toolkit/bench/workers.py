"""A module and its arguments -> a process that handles requests, one line of JSON each."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ptexport.runtime.errors import BenchError

SYSTEM_WORKER, PEAK_WORKER = (f"ptexport.toolkit.bench.{module}" for module in ("systems.worker", "machine_peak"))
_LAST_LINES = 3
TIMEOUT_S = 900.0  # of one response; some systems compile for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The hardware that a system runs on.

    Attributes:
        threads: number of CPUs that it may use.
        provider: execution provider of graphs, "cpu" or "cuda"; also the name of PyTorch's device.
    """

    threads: int
    provider: str = "cpu"

    def arguments(self) -> list[str]:
        """Return the arguments THREADS PROVIDER of worker.py and machine_peak.py."""
        return [str(self.threads), self.provider]


class Worker:
    """A process that reads requests from standard input and writes one response per request, all lines of JSON.

    Args:
        name: name of the system, for messages.
        module: module to run with `python -m`.
        arguments: arguments of the module.
        threads: number of CPUs that it may use.
        overlay: folder of packages that take precedence over the installed ones; None: none.
    """

    def __init__(
        self, name: str, module: str, arguments: list[str], *, threads: int, overlay: Path | None = None
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ptexport.toolkit.bench.pinned", str(threads), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(threads, overlay),
        )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def receive(self) -> Any:
        """Receive a response.

        Raises:
            BenchError: the process has ended, or has sent nothing for TIMEOUT_S; the message quotes its last output.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:  # at most one response is pending
            raise BenchError(
                f"{self.name}: sent no response for {TIMEOUT_S:.0f} s ({self._last_output()}); leave it out"
            )
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name}: its process ended with {self._process.wait()} ({self._last_output()})")
        return json.loads(line)

    def request(self, content: object) -> Any:
        """Send a request and receive its response; raises as `receive`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `receive` reports the reason
        return self.receive()

    def wait(self) -> None:
        """Wait for the end of a process that takes no requests.

        Raises:
            BenchError: the process failed; the message quotes its last output.
        """
        if self._process.wait():
            raise BenchError(f"{self.name}: cannot be prepared ({self._last_output()})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # the last request may still be in the buffer
                stream.close()

    def _last_output(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return "; ".join(lines[-_LAST_LINES:]) or "no output"


def bundle_worker(name: str, path: str, hardware: Hardware) -> Callable[[], Worker]:
    """Return a function that starts the process of a bundle."""
    arguments = ["serve", "bundle", "", path, *hardware.arguments()]
    return lambda: Worker(name, SYSTEM_WORKER, arguments, threads=hardware.threads)


def _environment(threads: int, overlay: Path | None) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    if overlay is not None:
        paths = [str(overlay), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
