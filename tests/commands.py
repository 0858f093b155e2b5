"""The command line, run in this process: a fresh one would load PyTorch for seconds each time."""

import contextlib
import io
import os
import subprocess
import sys
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
