"""Models from the hub, without one: its client's cache as it lies on a disk, and a server that refuses as it does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import sample

COMMITS = {"main": hashlib.sha1(b"main").hexdigest(), "v1": hashlib.sha1(b"v1").hexdigest()}
CARD = "---\nlicense: apache-2.0\n---\nA model.\n"


@pytest.fixture(scope="module")
def hub_home(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fetching two revisions of somebody/tiny leaves."""
    home = tmp_path_factory.mktemp("hub")
    repo = home / "hub" / "models--somebody--tiny"
    (repo / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (repo / "refs" / name).write_text(commit)
        snapshot = Path(shutil.copytree(llama, repo / "snapshots" / commit))
        (snapshot / "README.md").write_text(CARD)
    config = repo / "snapshots" / COMMITS["v1"] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 0.01}))
    return home


def ptexport(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ptexport.toolkit.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def train(rows_file: Path, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = ("--data", rows_file, "--template", "[P] {text}", "--labels", "positive=great,negative=bad")
    return ptexport("train", "--model", "somebody/tiny", *given, "--epochs", 1, "--out", out, *more, **environment)


@pytest.fixture
def run(request: pytest.FixtureRequest, hub_home: Path, rows_file: Path, tmp_path: Path) -> Path:
    """A run on one of the revisions."""
    options = () if request.param == "main" else ("--revision", request.param)
    done = train(rows_file, tmp_path / "run", *options, HF_HOME=str(hub_home))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["revision"] == COMMITS[request.param]
    return tmp_path / "run"


@pytest.mark.parametrize(("run", "commit"), sample(COMMITS.items(), ("v1", COMMITS["v1"])), indirect=["run"])
def test_the_revision_and_the_licence_travel_with_it(run: Path, commit: str, hub_home: Path, tmp_path: Path) -> None:
    done = ptexport("export", run, "--out", tmp_path / "bundle", HF_HOME=str(hub_home))
    assert done.returncode == 0, done.stderr
    backbone = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["backbone"]
    assert (backbone["name"], backbone["revision"]) == ("somebody/tiny", commit)
    assert backbone["licence"] == "apache-2.0"
    assert (tmp_path / "bundle" / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


def test_the_hub_cannot_be_reached(hub_home: Path, rows_file: Path, tmp_path: Path) -> None:
    done = train(rows_file, tmp_path / "run", "--revision", "v9", HF_HOME=str(hub_home))
    assert (done.returncode, "the hub cannot be reached" in done.stderr) == (1, True)


def test_a_folder_has_no_revisions(rows_file: Path, llama: Path, tmp_path: Path) -> None:
    done = train(rows_file, tmp_path / "run", "--revision", "v1", "--model", str(llama))
    assert (done.returncode, "and only the hub has revisions; leave out --revision" in done.stderr) == (1, True)


class Refusing(BaseHTTPRequestHandler):
    """Answers as the hub does for models that one may not have."""

    def do_GET(self) -> None:
        status, code = {
            "gated": (403, "GatedRepo"),
            "nothing": (401, "RepoNotFound"),
            "old": (404, "RevisionNotFound"),
        }[self.path.split("/")[4]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def refusing_hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


GATED = "gated on the hub; accept its terms on its page there, then set HF_TOKEN or run 'hf auth login'"
REFUSED = {
    "somebody/gated": GATED,
    "somebody/nothing": "and not on the hub; check the name, or set HF_TOKEN if it is private",
    "somebody/old": "has no revision 'v9' on the hub; look up its commits there",
}


@pytest.mark.parametrize(("model", "message"), REFUSED.items())
def test_what_the_hub_refuses(model: str, message: str, refusing_hub: str, rows_file: Path, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": refusing_hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = train(rows_file, tmp_path / "run", "--model", model, "--revision", "v9", **environment)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert message in done.stderr
    assert list(tmp_path.glob("run*")) == []
