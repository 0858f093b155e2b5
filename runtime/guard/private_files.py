"""A path -> the bytes of a secret, if only those who may know it can read the file."""

import os
import stat
from pathlib import Path

from ptexport.runtime.errors import ServeError

_MAX_BYTES = 1 << 16


def read_private(path: Path, what: str) -> bytes:
    """Read a secret: a token or a key.

    Others may not read or write the file; its group neither, unless root owns it. That is how Kubernetes (`fsGroup`)
    and systemd (`LoadCredential=`) hand a secret to a service that does not run as root; PostgreSQL has the same rule.

    Args:
        path: the file.
        what: what the file holds, for messages: "token" or "key".

    Raises:
        ServeError: the file cannot be read, is no regular file, is too large, or others can read it.
    """
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as e:
        raise ServeError(f"{path}: cannot be read ({e.strerror or e}); check the path of the {what}") from e
    if not stat.S_ISREG(status.st_mode):
        raise ServeError(f"{path}: got no regular file, need the {what} in one; write it to a file")
    mode = stat.S_IMODE(status.st_mode)
    if mode & (0o037 if status.st_uid == 0 else 0o077):
        raise ServeError(f"{path}: got the mode {mode:03o}, need a {what} that others cannot read; run chmod 600")
    if len(content) > _MAX_BYTES:
        raise ServeError(f"{path}: got more than {_MAX_BYTES} bytes, need a {what}; check the path")
    return content
