"""Certificates made by the openssl command: what is served with, and what is refused at start."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from raw import connect, read_all, served
from starlette.responses import PlainTextResponse

from ptexport.runtime.errors import ServeError
from ptexport.runtime.guard.connections import Connection
from ptexport.runtime.guard.tls import read_tls
from ptexport.runtime.server import stopping

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make(folder: Path, name: str, *options: str | Path) -> tuple[Path, Path]:
    """Make a certificate that signs itself, for localhost, valid for a day."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    if not options:
        options = ("-days", "1", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost")
    openssl(*new, "-keyout", key, "-out", certificate, *options)
    key.chmod(0o600)
    return certificate, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("tls"), "server")


def version_with(context: ssl.SSLContext, port: int, version: ssl.TLSVersion) -> str | None:
    """Connect with this version of TLS only."""
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as wrapped,
    ):
        return wrapped.version()


def test_a_certificate_serves_https(pair: tuple[Path, Path]) -> None:
    tls = read_tls(*pair)
    assert (tls.certificate, tls.key) == (pair[0].read_bytes(), pair[1].read_bytes())
    context = ssl.create_default_context(cafile=str(pair[0]))
    with served(PlainTextResponse("hello"), Connection, ssl_context_factory=lambda *_: tls.context) as port:
        with httpx.Client(verify=context) as client:
            assert client.get(f"https://localhost:{port}/").text == "hello"
        assert version_with(context, port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this client itself refuses 1.1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
            version_with(context, port, ssl.TLSVersion.TLSv1_1)
        with pytest.raises(httpx.RemoteProtocolError):  # plain HTTP
            httpx.get(f"http://127.0.0.1:{port}/")


def check_refused(certificate: Path, key: Path, message: str) -> None:
    with pytest.raises(ServeError) as error:
        read_tls(certificate, key)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_no_pem_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    missing = tmp_path / "missing"
    check_refused(missing, key, f"{missing}: cannot be read (No such file or directory); check --tls-cert")
    check_refused(certificate, missing, f"{missing}: cannot be read (No such file or directory); check the path of")
    text = tmp_path / "text"
    text.write_text("nothing", encoding="utf-8")
    text.chmod(0o600)
    check_refused(text, key, f"{text} and {key}: got files that OpenSSL cannot read (")
    check_refused(certificate, text, f"{certificate} and {text}: got files that OpenSSL cannot read (")
    check_refused(key, certificate, f"{certificate}: got the mode 644, need a key that others cannot read")


def test_the_key_of_another_certificate_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make(tmp_path, "other")[1]
    check_refused(pair[0], other, f"{other}: got the key of another certificate, need that of {pair[0]}")


def test_a_key_with_a_password_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", pair[1], "-aes256", "-passout", "pass:secret", "-out", locked)
    locked.chmod(0o600)
    check_refused(pair[0], locked, f"{locked}: got a key with a password, need one without")


def test_a_certificate_that_clients_refuse_is_refused(tmp_path: Path) -> None:
    folder = tmp_path
    request, key = folder / "request.pem", folder / "old.key"
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a")
    openssl(*new, "-keyout", key, "-out", request)
    key.chmod(0o600)
    (folder / "index").write_text("", encoding="utf-8")
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index\nnew_certs_dir={folder}\nrand_serial=yes\n"
        "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n",
        encoding="utf-8",
    )
    for name, start, end, message in (
        ("expired", "20200101000000Z", "20210101000000Z", "certificate has expired"),
        ("future", "20400101000000Z", "20410101000000Z", "certificate is not yet valid"),
    ):
        certificate = folder / f"{name}.pem"
        dates = ("-startdate", start, "-enddate", end)
        sign = ("ca", "-selfsign", "-batch", "-notext", "-config", folder / "ca.cnf", *dates)
        openssl(*sign, "-in", request, "-keyfile", key, "-out", certificate)
        check_refused(certificate, key, f"{certificate}: got a certificate that clients refuse ({message}), need a")
    client_only = make(folder, "client", "-days", "1", "-addext", "extendedKeyUsage=clientAuth")
    check_refused(*client_only, f"{client_only[0]}: got a certificate that clients refuse (")


def test_a_client_that_never_begins_tls_is_cut_off(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "HANDSHAKE_S", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()

    async def on_start() -> None:
        started.set()

    context = read_tls(*pair).context
    config = uvicorn.Config(
        PlainTextResponse("hello"),
        http=Connection,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        ssl_context_factory=lambda *_: context,
    )
    server = stopping.StoppableServer(config, on_start=on_start)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert started.wait(5)
    with connect(listener.getsockname()[1], timeout=2) as connection:
        begun = time.monotonic()
        assert read_all(connection) == b""
        assert 0.2 < time.monotonic() - begun < 1
    server.should_exit = True
    thread.join()
