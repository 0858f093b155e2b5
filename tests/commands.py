"""The command line, run in this process: a fresh one would load PyTorch for seconds each time."""

import contextlib
import ctypes
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

from ptexport.toolkit.cli.main import main


def ptexport(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a fresh process would, its output as people see it who have a terminal 200 columns wide."""
    words = ["ptexport", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, {"COLUMNS": "200", **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as e:
            code = e.code
    said = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(words, code if isinstance(code, int) else int(code is not None), *said)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ptexport.toolkit.training.sweep", "torch.onnx", "onnxscript"])


class Process:
    """A command in a process of its own, forked from one that has loaded PyTorch.

    Args:
        arguments: the command's.
        prepare: called in the process before the command; a function of a module, or a `partial` of one.
        environment: variables to add.
    """

    def __init__(self, *arguments: object, prepare: Callable[[], object] | None = None, **environment: str) -> None:
        ends = [_FORKS.Pipe(duplex=False) for _ in range(2)]
        self._words = ["ptexport", *map(str, arguments)]
        given = (self._words, ends[0][1], ends[1][1], {**os.environ, "COLUMNS": "200", **environment}, prepare)
        self._process = _FORKS.Process(target=_run, args=given)
        self._process.start()
        self._said = [bytearray(), bytearray()]
        self._readers = [
            threading.Thread(target=_collect, args=(reader, said), daemon=True)
            for (reader, _), said in zip(ends, self._said, strict=True)
        ]
        for (_, writer), reader in zip(ends, self._readers, strict=True):
            writer.close()
            reader.start()

    def running(self) -> bool:
        return self._process.is_alive()

    def stderr(self) -> str:
        """Return what it has written to standard error so far."""
        return self._said[1].decode(errors="replace")

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s: {self.stderr()}"
        for reader in self._readers:
            reader.join()
        return subprocess.CompletedProcess(self._words, self._process.exitcode, *(said.decode() for said in self._said))


def _collect(reader: Connection, said: bytearray) -> None:
    while block := os.read(reader.fileno(), 65536):
        said += block


def _run(
    words: list[str],
    out: Connection,
    err: Connection,
    environment: dict[str, str],
    prepare: Callable[[], object] | None,
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    if prepare is not None:
        prepare()
    main()


def read_from(path: Path) -> None:
    """Make a file the standard input of this process."""
    os.dup2(os.open(path, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing gives a process none


def without_privileges() -> None:
    """Hold root to the permissions of files, as everybody else is: drop all capabilities (capset(2))."""
    version_3, this_process = 0x20080522, 0
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version_3, this_process), (ctypes.c_uint32 * 6)()) == 0


_CLIENT = f"""\
#!{sys.executable} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.path.join(os.path.dirname(__file__), "socket"))
    stream = connection.makefile("rwb")
    stream.write(json.dumps([os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
    stream.flush()
    code, out, err = json.loads(stream.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@contextlib.contextmanager
def ptexport_on_path(folder: Path) -> Iterator[None]:
    """Put a program `ptexport` into a folder that has this process run its commands, while the block runs.

    A shell script runs word for word so, without loading PyTorch for each command.
    """
    program = folder / "ptexport"
    program.write_text(_CLIENT, encoding="utf-8")
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the block has ended
            return
        with connection, connection.makefile("rwb") as stream:
            place, arguments = json.loads(stream.readline())
            try:
                with contextlib.chdir(place):
                    done = ptexport(*arguments)
                said = [done.returncode, done.stdout, done.stderr]
            except BaseException:  # whatever it is, the script is to fail and say it
                said = [1, "", traceback.format_exc()]
            stream.write(json.dumps(said).encode() + b"\n")
            stream.flush()
