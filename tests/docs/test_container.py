"""The Dockerfile's steps and the systemd unit, run word for word without Docker and without a second machine.

No container engine runs where the project is tested, and no image registry is reached. So a minimal Debian with its own
Python stands in for the base image, bubblewrap for the container; every COPY and RUN is the Dockerfile's own. The same
root then boots its own systemd in namespaces of its own, which runs the unit, and nginx before it.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import dockerfile
import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
BUNDLE = ROOT / "tests" / "golden" / "format-1" / "reviews"
HERE = Path(__file__).parent
CAPABILITIES = ("CapEff", "CapPrm", "CapBnd", "CapAmb")
HOST_UNITS = ("systemd-sysctl", "systemd-udevd", "systemd-modules-load", "systemd-binfmt", "systemd-timesyncd")
"""They would change the machine outside."""
LIVE = "0801"
"""ServerLiveResponse(live=True), in hexadecimal."""
TOKEN = "0123456789abcdef0123456789abcdef"
TRIAL = """
[Unit]
Wants=systemd-journald.service dbus.service
After=systemd-journald.service dbus.service
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /root/inside_systemd.py
ExecStopPost=/usr/bin/systemctl exit
StandardError=append:/root/errors
TimeoutStartSec=150
"""
ASK = """
import json, urllib.request
body = json.dumps({"texts": ["good film"]}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/predict", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=5).read().decode())
"""
PAGE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/", timeout=5).read().decode())
"""
UNIT = (DEPLOY / "ptexport.service").read_text(encoding="utf-8")
BARE = ("[Service]", "Exec", "LoadCredential", "Environment", "Type", "Restart")
STAGES = dockerfile.stages_of((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
ABLE = os.geteuid() == 0 and all(map(shutil.which, ("debootstrap", "bwrap", "unshare", "setpriv", "nsenter")))
pytestmark = [pytest.mark.soak, pytest.mark.skipif(not ABLE, reason="needs root, debootstrap and bubblewrap")]


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The root of the Dockerfile's last stage, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)
        packages = "--include=python3,python3-venv,python3-pip,ca-certificates,systemd,dbus,nginx-light"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", str(place / "base")]
        subprocess.run(command, check=True, capture_output=True)
        yield dockerfile.build(STAGES, ROOT, place / "base", place)


class Container:
    """The last stage of a Dockerfile, running: its user, its ENTRYPOINT as process 1, all files read-only."""

    def __init__(self, image: dockerfile.Stage, root: Path) -> None:
        self._env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **image.env}
        user, group = image.settings["USER"].split(":")
        self._user = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        (root / "var/lib/ptexport/bundle").mkdir(parents=True, exist_ok=True)
        folders = ["--ro-bind", str(root), "/", "--ro-bind", str(BUNDLE), "/var/lib/ptexport/bundle"]
        limits = ["--dev", "/dev", "--proc", "/proc", "--unshare-all", "--as-pid-1", "--cap-drop", "ALL"]
        reader, writer = os.pipe()
        words = [*self._user, "bwrap", *folders, *limits, "--die-with-parent", "--info-fd", str(writer)]
        self._process = subprocess.Popen(
            [*words, *image.command()],
            env=self._env,
            pass_fds=[writer],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        with os.fdopen(reader) as info:
            self._pid = int(json.load(info)["child-pid"])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self._pid), "--mount", "--net", "--pid", "--", *self._user]
        return subprocess.run([*enter, *words], env=self._env, capture_output=True, text=True, check=False, timeout=60)

    def wait_until_healthy(self, command: list[str]) -> None:
        deadline = time.monotonic() + 60
        while (done := self.run(*command)).returncode != 0:
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.2)

    def status(self) -> dict[str, str]:
        """Return /proc/PID/status of process 1, as this machine sees it."""
        lines = Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8").splitlines()
        return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def stop(self, number: int) -> int:
        os.kill(self._pid, number)
        return self._process.wait(40)

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.read().decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
        self._process.__exit__(None, None, None)


def test_the_image_has_the_server_and_nothing_to_build_with(image: Path) -> None:
    site = next((image / "opt/ptexport/lib").glob("python3*/site-packages"))
    assert (site / "onnxruntime").is_dir()
    assert not (site / "pip").exists()
    assert not (site / "torch").exists()
    assert not (image / "root/.cache").exists()
    assert not list((image / "usr/bin").glob("*gcc*"))
    assert not (image / "src").exists()


def test_the_container_runs_as_nobody_and_writes_nothing(image: Path) -> None:
    with Container(STAGES[-1], image) as container:
        check_container(container, STAGES[-1])


def check_container(container: Container, image: dockerfile.Stage) -> None:
    container.wait_until_healthy(image.health())
    python = "/opt/ptexport/bin/python"
    answer = json.loads(container.run(python, "-I", "-c", ASK).stdout)
    assert answer["predictions"][0]["label"] in ("positive", "negative")
    called = container.run(python, "-I", "-c", (HERE / "call.py").read_text(encoding="utf-8"), "127.0.0.1:8001")
    assert called.stdout.strip() == LIVE, called.stderr
    assert "<html" in container.run(python, "-I", "-c", PAGE).stdout, "the wheel has the page"
    status = container.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert [int(status[name], 16) for name in CAPABILITIES] == [0] * 4
    assert status["NoNewPrivs"] == "1"
    for folder in ("/", "/tmp", "/var/tmp", "/opt/ptexport", "/var/lib/ptexport/bundle"):
        assert "Read-only file system" in container.run("touch", f"{folder}/file").stderr, folder
    assert container.run("touch", "/dev/shm/file").returncode == 0, "the control: in memory, as in Docker"
    assert container.stop(signal.Signals[image.settings["STOPSIGNAL"]]) == 0, container.said()


def test_the_unit_serves_in_its_sandbox_under_a_real_systemd(image: Path) -> None:
    saw = boot(image, UNIT)
    check_service(saw)
    assert [promise for promise, held in sandbox(saw).items() if not held] == []


def test_without_its_sandbox_the_unit_keeps_no_promise(image: Path) -> None:
    """The control: each promise is one that the trial would see broken."""
    saw = boot(image, "\n".join(line for line in UNIT.splitlines() if line.startswith(BARE)))
    check_service(saw)
    assert [promise for promise, held in sandbox(saw).items() if held] == []


def boot(root: Path, unit: str) -> dict[str, Any]:
    """Boot the root's systemd with the unit installed; returns what inside_systemd.py saw."""
    state = root / "var/lib/ptexport"
    shutil.copytree(BUNDLE, state / "bundle", dirs_exist_ok=True)
    for path in (state / "models", state / ".arriving"):
        shutil.rmtree(path, ignore_errors=True)
    (state / "models").mkdir()
    (root / "etc/ptexport").mkdir(exist_ok=True)
    (root / "etc/ptexport/token").write_text(TOKEN, encoding="utf-8")
    (root / "etc/ptexport/token").chmod(0o600)
    shutil.copy(DEPLOY / "nginx.conf", root / "etc/nginx/conf.d/ptexport.conf")
    shutil.copy(HERE / "probe.py", root / "opt/ptexport")
    for name in ("inside_systemd.py", "call.py"):
        shutil.copy(HERE / name, root / "root")
    shutil.copytree(BUNDLE.parent / "both", root / "root/arriving", dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    (units / "ptexport.service").write_text(unit, encoding="utf-8")
    (units / "trial.target").write_text("[Unit]\nRequires=trial.service\nAfter=trial.service\n", encoding="utf-8")
    (units / "trial.service").write_text(TRIAL, encoding="utf-8")
    for name in HOST_UNITS:
        (units / f"{name}.service").unlink(missing_ok=True)
        (units / f"{name}.service").symlink_to("/dev/null")
    saw = root / "root/saw.json"
    journal = root / "var/log/journal"  # of the boot before
    if journal.exists():
        shutil.rmtree(journal)
    errors = root / "root/errors"
    for path in (saw, errors):
        path.unlink(missing_ok=True)
    done = subprocess.run([str(HERE / "boot_systemd.sh"), str(root)], capture_output=True, text=True, check=False)
    assert saw.exists(), done.stderr + errors.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(saw.read_text(encoding="utf-8"))
    return found


def check_service(saw: dict[str, Any]) -> None:
    """What must hold with and without a sandbox."""
    assert saw["ready"]
    assert saw["answer"]["predictions"][0]["label"] in ("positive", "negative")
    assert saw["arrived"]
    assert saw["grpc_through_nginx"] == LIVE
    assert saw["through_nginx"] == [saw["answer"], 404]
    assert saw["after_a_kill"] == [True, "1"]
    assert saw["stop"][:2] == ["success", "0"]
    assert saw["stop"][2] < 35
    assert probe_of(saw)["token"] == TOKEN
    assert not any("onnxruntime:" in line or "warning" in line for line in saw["journal"]), saw["journal"]


def probe_of(saw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(json.loads(line)["probe"] for line in saw["journal"] if line.startswith('{"probe"'))
    return found


def sandbox(saw: dict[str, Any]) -> dict[str, bool]:
    """What the unit promises, and whether it held."""
    probe, status = probe_of(saw), saw["status"]
    return {
        "not root": status["Uid"].split()[0] != "0",
        "no capabilities": not any(int(status[name], 16) for name in CAPABILITIES),
        "no new privileges": status["NoNewPrivs"] == "1",
        "system calls filtered": status["Seccomp"] == "2",
        "exposure at most 1": float(saw["exposure"].split(": ")[1].split()[0]) <= 1.0,
        "no address but those allowed": not saw["ready_without_an_allowed_address"],
        "writes /tmp alone": {name for name, e in probe["files"].items() if e is None} == {"/tmp", "/var/tmp"},
        "a /tmp of its own": not saw["tmp_is_shared"],
        "no UNIX sockets": probe["unix"] is not None,
        "no executable memory": probe["executable_memory"] is not None,
        "sees itself alone": len(probe["processes"]) == 1,
    }
