"""The Host and Origin of a request -> the same request, or a refusal: a web page cannot use a server without a token.

A browser sends the requests of any page to 127.0.0.1. Without these checks a page could read answers, by a name of its
own that resolves to 127.0.0.1 (DNS rebinding), and could have texts classified whose answers it does not see.
"""

import re
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from ptexport.runtime.guard.refusals import refuse

_HOST = re.compile(rb"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]*)?", re.IGNORECASE)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def own_names(host: str, address: str) -> frozenset[str] | None:
    """Return the names by which a server may be asked, or None: by any.

    Args:
        host: where it was told to listen; in brackets if it is an address of IPv6.
        address: IP address that it listens on.
    """
    return _LOOPBACK | {host.lower()} if ip_address(address.partition("%")[0]).is_loopback else None


class CheckOrigin:
    """ASGI middleware that answers 421 to requests for another host, and 403 to a POST from another host's page.

    Args:
        app: gets all other requests.
        names: as from `own_names`.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] | None) -> None:
        self._app = app
        self._names = None if names is None else {name.encode() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        hosts = _values(scope, b"host")
        if self._names is not None and not self._is_own(hosts):
            names = ", ".join(sorted(name.decode() for name in self._names))
            sentence = f"header host: got another host, need one of {names}; ask by that name, or use --token-file"
            await refuse(scope, receive, send, 421, sentence)
        elif scope["method"] == "POST" and not _same_origin(_values(scope, b"origin"), hosts):
            sentence = "header origin: got another host's page, need this server's; send it from no web page"
            await refuse(scope, receive, send, 403, sentence)
        else:
            await self._app(scope, receive, send)

    def _is_own(self, hosts: list[bytes]) -> bool:
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        return match is not None and match[1] in (self._names or ())


def _values(scope: Scope, header: bytes) -> list[bytes]:
    return [value.lower() for name, value in scope["headers"] if name == header]


def _same_origin(origins: list[bytes], hosts: list[bytes]) -> bool:
    """Say whether no web page sends a request, or one of its own host and port; the scheme is a proxy's business."""
    return not origins or [origin.partition(b"://")[2] for origin in origins] == hosts
