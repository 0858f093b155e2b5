"""A token file -> requests that carry the token, and refusals for all others."""

import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from ptexport.runtime.errors import ServeError
from ptexport.runtime.guard.private_files import read_private
from ptexport.runtime.guard.refusals import refuse

MIN_CHARACTERS = 16
OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""Probes cannot carry a token, and the page must load before it can ask for one."""
SENTENCE = (
    "authorization: got no valid bearer token, need the one in the server's --token-file; "
    "send the header Authorization: Bearer TOKEN"
)

_TOKEN = re.compile(rb"[!-~]+")  # what a header carries unchanged: printable ASCII without spaces
_PAGE_FILE = re.compile(r"/page/\w[\w-]*(\.\w[\w-]*)*", re.ASCII)  # one file: no folder, no "..", no escapes


def read_token(path: Path) -> bytes:
    """Read the token that requests must carry.

    Raises:
        ServeError: the file cannot be read, others can read it, or it does not hold one line with a token.
    """
    lines = read_private(path, "token").splitlines()
    if len(lines) != 1:
        raise ServeError(f"{path}: got {len(lines)} lines, need one line with the token; write only the token")
    token = lines[0]
    if not _TOKEN.fullmatch(token):
        raise ServeError(f"{path}: got a token with other characters, need printable ASCII without spaces; change it")
    if len(token) < MIN_CHARACTERS:
        raise ServeError(
            f"{path}: got a token of {len(token)} characters, need at least {MIN_CHARACTERS}; run openssl rand -hex 32"
        )
    return token


def token_of(authorizations: Iterable[bytes]) -> bytes | None:
    """Return the bearer token of a request's Authorization values, or None if there is not exactly one."""
    values = list(authorizations)
    if len(values) != 1:  # two headers: a proxy in front may have checked the other one
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else None


def token_of_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """Return the bearer token of a gRPC call's `invocation_metadata()`, or None if there is not exactly one."""
    return token_of(
        value if isinstance(value, bytes) else value.encode("latin-1", "replace")
        for key, value in metadata
        if key == "authorization"  # gRPC takes lower-case keys only
    )


def is_token(given: bytes | None, token: bytes) -> bool:
    """Compare a request's token with the server's, in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(given, token)


class RequireToken:
    """ASGI middleware that answers 401 to requests without the token, but for probes and the page.

    What is open is decided on the path that the router takes, `scope["path"]`, and by equality: a path that anything
    could read in two ways is not open. `request.url` is made from the Host header, which the client chooses.
    """

    def __init__(self, app: ASGIApp, token: bytes) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] == "lifespan" or _is_open(scope) or is_token(_token_of_scope(scope), self._token):
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, 401, SENTENCE, [(b"www-authenticate", b"Bearer")])


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or _PAGE_FILE.fullmatch(path) is not None)


def _token_of_scope(scope: Scope) -> bytes | None:
    return token_of(value for name, value in scope["headers"] if name == b"authorization")
