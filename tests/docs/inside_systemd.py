"""A service of a booted root: starts, asks, stops and kills ptexport.service, and writes what it saw as JSON."""

import contextlib
import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TOKEN = Path("/etc/ptexport/token").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout


def shown(name: str) -> str:
    return systemctl("show", "ptexport", "--value", "--property", name).strip()


def ask(url: str, context: ssl.SSLContext | None = None) -> Any:
    body = json.dumps({"texts": ["good film"], "task": "reviews"}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"{url}/predict", body, headers)
    with urllib.request.urlopen(request, timeout=3, context=context) as response:
        return json.load(response)


def arrive() -> bool:
    """Deliver a bundle as a person would, by a rename; return whether the server then has its model."""
    before = names()
    new = Path(shutil.copytree("/root/arriving", "/var/lib/ptexport/.arriving"))
    new.rename("/var/lib/ptexport/models/arriving")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and names() == before:
        time.sleep(0.2)
    return len(names()) > len(before)


def names() -> list[str]:
    """Return the names of the server's models."""
    request = urllib.request.Request(f"{URL}/v2/models", headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=3) as response:
        return list(json.load(response)["models"])


def through_nginx() -> list[Any]:
    """Return an answer over TLS, and the status of /metrics there."""
    folder = Path("/etc/nginx/tls")
    folder.mkdir(exist_ok=True)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(made, check=True, capture_output=True)
    systemctl("start", "nginx")
    context = ssl.create_default_context(cafile=folder / "cert.pem")
    answer = ask("https://127.0.0.1", context)
    try:
        urllib.request.urlopen("https://127.0.0.1/metrics", timeout=3, context=context).close()
    except urllib.error.HTTPError as e:
        return [answer, e.code]
    return [answer, 200]


def is_ready(within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{URL}/v2/health/ready", timeout=1).close()
            return True
        time.sleep(0.2)
    return False


def drop_in(text: str) -> None:
    """Replace the drop-in of this program."""
    folder = Path("/run/systemd/system/ptexport.service.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.conf").write_text(f"[Service]\n{text}\n", encoding="utf-8")
    systemctl("daemon-reload")


def trial() -> dict[str, Any]:
    saw: dict[str, Any] = {}
    drop_in("ExecStartPre=/opt/ptexport/bin/python /opt/ptexport/probe.py %d")
    systemctl("start", "ptexport")
    saw["ready"] = is_ready(30)
    saw["answer"] = ask(URL)
    saw["tmp_is_shared"] = Path("/tmp/file").exists()  # probe.py wrote it
    saw["arrived"] = arrive()
    saw["through_nginx"] = through_nginx()
    call = ["/opt/ptexport/bin/python", "/root/call.py", "127.0.0.1:8443", "/etc/nginx/tls/cert.pem", TOKEN]
    saw["grpc_through_nginx"] = subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()
    lines = Path(f"/proc/{shown('MainPID')}/status").read_text(encoding="utf-8").splitlines()
    saw["status"] = {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}
    exposure = subprocess.run(["systemd-analyze", "security", "ptexport"], check=False, capture_output=True, text=True)
    saw["exposure"] = exposure.stdout.splitlines()[-1]
    systemctl("kill", "--signal", "KILL", "ptexport")
    time.sleep(3)
    saw["after_a_kill"] = [is_ready(30), shown("NRestarts")]
    started = time.monotonic()
    systemctl("stop", "ptexport")
    saw["stop"] = [shown("Result"), shown("ExecMainStatus"), time.monotonic() - started]
    drop_in("IPAddressAllow=")  # the control of IPAddressDeny=any: not even this machine may ask
    systemctl("start", "ptexport")
    saw["ready_without_an_allowed_address"] = is_ready(5)
    systemctl("stop", "ptexport")
    said = subprocess.run(
        ["journalctl", "--unit", "ptexport", "--output", "cat"], capture_output=True, text=True, check=True
    )
    saw["journal"] = said.stdout.splitlines()
    return saw


Path("/root/saw.json").write_text(json.dumps(trial()), encoding="utf-8")
