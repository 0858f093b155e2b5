"""The command line, run in this process: a fresh one would load PyTorch for seconds each time."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
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
