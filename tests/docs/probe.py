"""Runs as a command of ptexport.service, in its sandbox: prints as one line of JSON what it may do."""

import json
import mmap
import socket
import sys
from collections.abc import Callable
from pathlib import Path

FOLDERS = ("/", "/etc", "/opt/ptexport", "/var/lib/ptexport/models", "/dev/shm", "/var/tmp", "/tmp")


def refused(action: Callable[[], object]) -> str | None:
    """Return the error of an action, None where it was allowed."""
    try:
        action()
    except OSError as e:
        return e.strerror
    return None


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


if __name__ == "__main__":
    found = {
        "token": (Path(sys.argv[1]) / "token").read_text(encoding="utf-8"),
        "files": {name: refused((Path(name) / "file").touch) for name in FOLDERS},
        "unix": refused(lambda: socket.socket(socket.AF_UNIX).close()),
        "executable_memory": refused(executable_memory),
        "processes": [path.name for path in Path("/proc").glob("[0-9]*")],
    }
    print(json.dumps({"probe": found}))
