"""Processes of a bench: what rivals need is made once, then each answers lines of JSON, whatever these say."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ptexport.runtime.errors import BenchError

WORKER, CEILING = (f"ptexport.toolkit.bench.{module}" for module in ("systems.worker", "ceiling"))
_LAST_LINES = 3
TIMEOUT_S = 900.0  # of one answer: some rivals compile for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a system runs on.

    Attributes:
        threads: CPUs that it may use.
        provider: execution provider of graphs, cpu or cuda; PyTorch's device of that name is where it runs.
    """

    threads: int
    provider: str = "cpu"


class Worker:
    """A process that answers each line with one.

    Args:
        name: of the system, for messages.
        module: to run with `python -m`.
        arguments: of the module.
        threads: CPUs that it may use.
        overlay: folder of packages that hide ours; None: none.
    """

    def __init__(
        self, name: str, module: str, arguments: list[str], *, threads: int, overlay: Path | None = None
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ptexport.toolkit.bench.held", str(threads), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(threads, overlay),
        )

    def read(self) -> Any:
        """Read a line.

        Raises:
            BenchError: the process has ended, or has said nothing for TIMEOUT_S; says what it said last.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:  # a line at most is under way
            raise BenchError(f"{self.name}: has not answered for {TIMEOUT_S:.0f} s ({self._said()}); leave it out")
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name}: its process ended with {self._process.wait()} ({self._said()})")
        return json.loads(line)

    def ask(self, what: object) -> Any:
        """Write a line and read one; raises as `read`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return self.read()

    def wait(self) -> None:
        """Wait until a process ends that is asked nothing; raises as `read`, if it failed."""
        if self._process.wait():
            raise BenchError(f"{self.name}: cannot be made ready ({self._said()})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what was written last may still be there
                stream.close()

    def _said(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return "; ".join(lines[-_LAST_LINES:]) or "it said nothing"


def _environment(threads: int, overlay: Path | None) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    if overlay is not None:
        paths = [str(overlay), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def placed(hardware: Hardware) -> list[str]:
    """Say it in arguments of worker.py and ceiling.py."""
    return [str(hardware.threads), hardware.provider]
