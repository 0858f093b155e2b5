"""Where a server listens, and for whom."""

from dataclasses import dataclass

from ptexport.runtime.guard.tls import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a server listens, and for whom.

    Attributes:
        host: address.
        port: port of HTTP; 0: any free one.
        grpc_port: port of gRPC; 0: any free one; None: no gRPC.
        token: token that requests must carry; None: none.
        tls: certificate and key; None: no encryption.
    """

    host: str
    port: int
    grpc_port: int | None = None
    token: bytes | None = None
    tls: Tls | None = None

    @property
    def shown_host(self) -> str:
        """The host as an address shows it: IPv6 in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host
