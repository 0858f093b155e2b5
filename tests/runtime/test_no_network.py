"""Opening, asking and serving reach nobody and leave no file, with nothing set by the user; and controls that do.

The kernel watches (sealed.py): what it proves holds for ONNX Runtime and tokenizers as for Python.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from servers import check_success

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="sealed.py's filter")

SEALED = Path(__file__).with_name("sealed.py")

ASK = """
import asyncio, sys, time
from ptexport.runtime import Engine
with Engine.open(sys.argv[1], threads=2) as engine:
    assert engine.info.golden_max_abs_diff < 1e-3
    assert len(list(engine.predict_iter(["slow", "bright"]))) == len(asyncio.run(engine.predict_async(["", "it"])))
time.sleep(float(sys.argv[2]))  # for threads that would report later
print("asked")
"""
SERVE = """
import sys
from ptexport.toolkit.cli.main import main
sys.argv = ["ptexport", "serve", *sys.argv[1:], "--port", "0", "--json"]
main()
"""
REACH = """
import socket, sys
if sys.argv[1] == "loopback":
    socket.create_connection(("127.0.0.1", 9))
elif sys.argv[1] == "name":
    socket.getaddrinfo("example.com", 80)
else:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
"""


def sealed(place: Path, code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script behind the filter, in a home of its own."""
    script = place / "script.py"
    script.write_text(code, encoding="utf-8")
    home = place / "home"
    for folder in (home, home / "tmp"):
        folder.mkdir(exist_ok=True)
    # A user's environment: ONNX Runtime's telemetry is off where it sees a variable of a build server (CI, ...).
    given = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    given |= {"TMPDIR": str(home / "tmp"), **environment}
    command = [sys.executable, str(SEALED), str(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=home, env=given, stdout=pipe, stderr=pipe, text=True)


def files(place: Path) -> list[str]:
    return sorted(
        str(path.relative_to(place)) for path in place.rglob("*") if path.is_file() and path.name != "script.py"
    )


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_asking(bundle: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    process = sealed(tmp_path, ASK, str(request.getfixturevalue(bundle)), "1")
    assert process.communicate(timeout=60) == ("asked\n", "")
    assert process.returncode == 0
    assert files(tmp_path) == []


def test_serving(llama_bundle: Path, tmp_path: Path) -> None:
    process = sealed(tmp_path, SERVE, str(llama_bundle))
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    assert len(httpx.post(f"{url}/predict", json={"texts": ["slow", "bright"]}).json()["predictions"]) == 2
    process.terminate()
    check_success(process)
    assert files(tmp_path) == []


@pytest.mark.parametrize("what", ["loopback", "name", "udp"])
def test_control_what_reaches_out_is_ended(what: str, tmp_path: Path) -> None:
    process = sealed(tmp_path, REACH, what)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGSYS


def test_control_telemetry_leaves_files(llama_bundle: Path, tmp_path: Path) -> None:
    """As onnxruntime 1.29 and newer do unless told otherwise."""
    sealed(tmp_path, ASK, str(llama_bundle), "1", ORT_DISABLE_TELEMETRY="0").communicate(timeout=60)
    assert any("onnxruntime" in name for name in files(tmp_path))
