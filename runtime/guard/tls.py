"""A certificate and its key -> what HTTP and gRPC need to serve with them, tried at start."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from ptexport.runtime.errors import ServeError, reason
from ptexport.runtime.guard.private_files import read_private


@dataclass(frozen=True)
class Tls:
    """A certificate that works: for uvicorn a context, for gRPC the bytes of both files (PEM)."""

    context: ssl.SSLContext
    certificate: bytes
    key: bytes


def read_tls(certificate: Path, key: Path) -> Tls:
    """Read a certificate (with its chain) and its key, and prove with a handshake in memory that they work.

    TLS 1.2 and 1.3 are offered, HTTP/1.1 only.

    Raises:
        ServeError: a file cannot be read, others can read the key, the key has a password, the two do not belong
            together, or a client would refuse the certificate today (expired, not yet valid, not for servers).
    """
    key_bytes = read_private(key, "key")
    try:
        certificate_bytes = certificate.read_bytes()
    except OSError as e:
        raise ServeError(f"{certificate}: cannot be read ({e.strerror or e}); check --tls-cert") from e
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse_password() -> str:
        raise ServeError(f"{key}: got a key with a password, need one without; run openssl pkey -in KEY -out NEW")

    try:
        context.load_cert_chain(certificate, key, refuse_password)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise ServeError(f"{key}: got the key of another certificate, need that of {certificate}") from e
        raise ServeError(
            f"{certificate} and {key}: got files that OpenSSL cannot read ({reason(e)}), need PEM; "
            "check --tls-cert and --tls-key"
        ) from e
    _shake_hands(context, certificate, certificate_bytes)
    return Tls(context, certificate_bytes, key_bytes)


def _shake_hands(context: ssl.SSLContext, path: Path, certificate: bytes) -> None:
    """Have a client that trusts only this certificate connect in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # names are the operator's business: a server has several
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust it as it is, whoever signed it
    client.load_verify_locations(cadata=certificate.decode("ascii", "replace"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(3):  # hello; hello, certificate and proof; finished
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as e:
        raise ServeError(
            f"{path}: got a certificate that clients refuse ({e.verify_message}), need a valid one; renew it"
        ) from e
