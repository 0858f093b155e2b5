"""Bundles pushed by huggingface_hub's own client to tests/hub.py, over HTTP on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ptexport as in_process
from hub import GIT_FILE, Hub, ptexport, running_hub
from huggingface_hub import constants

from ptexport.runtime.bundle.folder import Bundle


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


PUSH = """
import json, sys
from pathlib import Path
from ptexport.runtime.errors import PtexportError
from ptexport.runtime.hub.push import check_push, push
said = []
for name in sys.argv[2:]:
    private = name.startswith("private ")
    name = name.removeprefix("private ")
    try:
        check_push(name, private=private)
        said.append(push(Path(sys.argv[1]), name, private=private))
    except PtexportError as e:
        said.append(f"{type(e).__name__} {e}")
print(json.dumps(said))
"""


def push(bundle: Path, *names: str, **environment: str) -> list[str]:
    """Push a bundle to names in one process; returns the commits' URLs or the errors."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    command = [sys.executable, "-c", PUSH, str(bundle), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


def files(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def test_one_commit_has_the_bundle_and_nothing_else(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(llama_bundle, tmp_path / "bundle"))
    (bundle / "notes.txt").write_text("for me")
    done = ptexport("push", bundle, "you/reviews", "--private", **hub.environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    repository = hub.repositories["you/reviews"]
    first, commit = repository.commits
    assert done.stdout == f"{hub.url}/you/reviews/commit/{commit}: pushed; open it as hub:you/reviews\n"
    assert repository.commits[first] == GIT_FILE
    assert repository.commits[commit] == GIT_FILE | files(llama_bundle)
    assert repository.private


def test_a_new_version_replaces_the_files_of_the_old(
    hub: Hub, llama_bundle: Path, bert_bundle: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(bert_bundle, tmp_path / "old"))
    for name in ("templates.json", "model.sig", "LICENSE"):  # a reader takes a bundle with templates.json for another
        (old / name).write_text("{}")
    hub.put("you/reviews", old)
    (url,) = push(llama_bundle, "you/reviews", **hub.environment(tmp_path))
    commits = hub.repositories["you/reviews"].commits
    assert len(commits) == 2
    assert commits[url.rpartition("/")[2]] == GIT_FILE | {"LICENSE": b"{}"} | files(llama_bundle)


def test_the_same_again_is_no_error(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    first, second = push(llama_bundle, "you/reviews", "you/reviews", **hub.environment(tmp_path))
    assert all(url.startswith(f"{hub.url}/you/reviews/commit/") for url in (first, second))


def test_what_is_refused_before_anything_is_sent(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.put("you/model", tmp_path / "model")
    hub.put("you/public", llama_bundle)
    expected = {
        "reviews": "push 'reviews': not the name of a repository, need OWNER/NAME; correct it",
        "hub:you/reviews": "push 'hub:you/reviews': not the name of a repository, need OWNER/NAME; correct it",
        "us/reviews": "push us/reviews: you are you, need one of you, their-company as OWNER; name it",
        "you/model": "push you/model: has config.json and no manifest.json, need a new repository or one with a "
        "bundle; choose another name",
        "private you/public": "push you/public: is public, need a private one; change it on its page, or choose "
        "another",
    }
    said = push(llama_bundle, *expected, **hub.environment(tmp_path))
    assert said == [f"HubError {message}" for message in expected.values()]
    (bad_name,) = push(llama_bundle, "you/re--views", **hub.environment(tmp_path))
    assert bad_name.startswith("HubError push you/re--views: not a name that the hub allows (")
    assert [len(hub.repositories[name].commits) for name in ("you/model", "you/public")] == [1, 1]
    assert hub.objects == {}
    assert list(hub.repositories) == ["you/model", "you/public"]


LOG_IN = "set HF_TOKEN or run 'hf auth login'"
ACCESS = {
    None: f"not logged in to the hub, need a token that may write; {LOG_IN}",
    "hf_unknown": f"the hub refuses the token, need a valid one; {LOG_IN}",
}


@pytest.mark.parametrize("token", ACCESS)
def test_who_may_not_push(token: str | None, hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    (said,) = push(llama_bundle, "you/reviews", **hub.environment(tmp_path, token))
    assert said == f"HubError push you/reviews: {ACCESS[token]}"


def test_refusals_on_the_way(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    """A token for reading is known by its first write; the hub, or the way to it, breaks later."""
    said = {}
    for method, status in (("POST /api/repos/create", 403), ("POST /you/reviews.git/info/lfs/objects/batch", 404)):
        hub.answer = lambda request, method=method, status=status: status if request == method else None  # type: ignore[misc]
        (said[status],) = push(llama_bundle, "you/reviews", **hub.environment(tmp_path))
    assert said[403].startswith("HubError push you/reviews: the token may not write there (403 Forbidden")
    assert said[403].endswith("; use one with write access to it")
    assert said[404].startswith("HubError push you/reviews: the hub refuses it (Client error '404 Not Found'")
    assert len(hub.repositories["you/reviews"].commits) == 1, "its first, of git's own files"
    away = hub.environment(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (unreached,) = push(llama_bundle, "you/reviews", **away)
    assert unreached == ("HubError push you/reviews: the hub cannot be reached; check the network, and try again")
    (offline,) = push(llama_bundle, "you/reviews", **(away | {"HF_HUB_OFFLINE": "1"}))
    assert "the hub cannot be reached (HF_HUB_OFFLINE is set); check" in offline


def test_a_changed_bundle_is_not_pushed(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(llama_bundle, tmp_path / "bundle"))
    (bundle / "config.json").write_text((bundle / "config.json").read_text() + " ")
    (said,) = push(bundle, "you/reviews", **hub.environment(tmp_path))
    assert said.startswith(f"BundleError {bundle / 'config.json'}: got ")
    assert hub.repositories == {}


@pytest.fixture
def online(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub as this process' own, whose huggingface_hub was imported offline: a fresh one would load PyTorch."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    return hub


CLIENTS_OWN = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
"""What huggingface_hub 2.4.0 makes httpx2 2.16 say when it uploads."""


@CLIENTS_OWN
def test_export_pushes(online: Hub, llama_run: Path, tmp_path: Path) -> None:
    done = in_process("export", llama_run, "--out", tmp_path / "reviews", "--push", "you/reviews", "--json")
    assert done.returncode == 0, done.stderr
    commit = list(online.repositories["you/reviews"].commits)[-1]
    printed = json.loads(done.stdout)
    assert printed.pop("commit_url") == f"{online.url}/you/reviews/commit/{commit}"
    assert printed == json.loads((tmp_path / "reviews" / "manifest.json").read_text())
    assert online.repositories["you/reviews"].commits[commit] == GIT_FILE | files(tmp_path / "reviews")


def test_export_checks_the_push_first(online: Hub, llama_run: Path, tmp_path: Path) -> None:
    done = in_process("export", llama_run, "--out", tmp_path / "reviews", "--push", "us/reviews")
    assert done.stderr == "ptexport: push us/reviews: you are you, need one of you, their-company as OWNER; name it\n"
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    done = in_process("export", llama_run, "--out", tmp_path / "reviews", "--private")
    assert (done.returncode, "--private goes with --push OWNER/NAME." in done.stderr) == (2, True)


@CLIENTS_OWN
def test_a_failed_push_keeps_the_bundle(online: Hub, llama_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "reviews"
    online.answer = lambda request: 403 if request.startswith("POST /api/models/") else None
    done = in_process("export", llama_run, "--out", out, "--push", "you/reviews", "--private")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ptexport: {out}: exported, but not on the hub (push you/reviews: the token may not write")
    command = f"ptexport push {out} you/reviews --private"
    assert said.endswith(f"; push it with: {command}")
    assert Bundle.open(out).manifest.name == "reviews"
    online.answer = lambda request: None
    done = in_process(*command.split()[1:])
    assert done.returncode == 0, done.stderr
