"""The steps of the Dockerfile, run without Docker: they build a root that serves a bundle as nobody, writing nothing.

No container engine runs where the project is tested, and no image registry is reached. So a minimal Debian with its own
Python stands in for the base image, bubblewrap for the container; every COPY and RUN is the Dockerfile's own.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dockerfile
import pytest

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "golden" / "format-1" / "reviews"
ASK = """
import json, urllib.request
body = json.dumps({"texts": ["good film"]}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/predict", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request, timeout=5).read().decode())
"""


@contextmanager
def stand_in() -> Iterator[Path]:
    """A folder that every user may enter, with a minimal Debian in `base`."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)
        packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", str(place / "base")]
        subprocess.run(command, check=True, capture_output=True)
        yield place


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
            [*words, *image.command()], env=self._env, pass_fds=[writer], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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

    def kill(self) -> None:
        if self._process.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
            self._process.wait()


@pytest.mark.soak
@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "bwrap"))), reason="needs root, debootstrap, bwrap"
)
def test_the_dockerfile_builds_a_server_that_runs_as_nobody_and_writes_nothing() -> None:
    stages = dockerfile.stages_of((ROOT / "examples" / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    with stand_in() as place:
        root = dockerfile.build(stages, ROOT, place / "base", place)
        check_image(root)
        container = Container(stages[-1], root)
        try:
            check_container(container, stages[-1])
        finally:
            container.kill()


def check_image(root: Path) -> None:
    """No pip of the server's own, no cache of pip, no compiler, no sources."""
    site = next((root / "opt/ptexport/lib").glob("python3*/site-packages"))
    assert (site / "onnxruntime").is_dir()
    assert not (site / "pip").exists()
    assert not (site / "torch").exists()
    assert not (root / "root/.cache").exists()
    assert not list((root / "usr/bin").glob("*gcc*"))
    assert not (root / "src").exists()


def check_container(container: Container, image: dockerfile.Stage) -> None:
    container.wait_until_healthy(image.health())
    python = "/opt/ptexport/bin/python"
    answer = json.loads(container.run(python, "-I", "-c", ASK).stdout)
    assert answer["predictions"][0]["label"] in ("positive", "negative")
    status = container.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapEff", "CapPrm", "CapBnd", "CapAmb"), 0
    )
    assert status["NoNewPrivs"] == "1"
    for folder in ("/", "/tmp", "/var/tmp", "/opt/ptexport", "/var/lib/ptexport/bundle"):
        assert "Read-only file system" in container.run("touch", f"{folder}/file").stderr, folder
    assert container.stop(signal.Signals[image.settings["STOPSIGNAL"]]) == 0, container.said()
