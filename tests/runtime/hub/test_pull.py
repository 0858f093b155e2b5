"""Bundles by their names on the hub: huggingface_hub's own client against tests/hub.py, over HTTP on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import ptexport as in_process
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hub import Hub, ptexport, running_hub, start

from ptexport.runtime import Engine, SignatureError
from ptexport.runtime.bundle.signature import sign_folder
from ptexport.toolkit.cli.main import cli
from ptexport.toolkit.cli.options import BundleFolder

NAME = "hub:you/reviews"
TEXTS = ["the film was bright", "slow", "Asia"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


def predict(bundle: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return ptexport("predict", bundle, *TEXTS, "--json", **environment)


def cached(home: Path) -> list[str]:
    """List the cache, without locks."""
    return sorted(path.name for path in (home / "cache" / "ptexport" / "hub").glob("*") if path.suffix != ".lock")


PULL = """
import json, sys
from ptexport.runtime.hub.pull import local_folder
from ptexport.runtime.errors import PtexportError
said = []
for name in sys.argv[1:]:
    try:
        said.append(str(local_folder(name)))
    except PtexportError as e:
        said.append(f"{type(e).__name__} {e}")
print(json.dumps(said))
"""


def pull(*names: str, **environment: str) -> list[str]:
    """Pull names in one process; returns their folders or the errors."""
    done = subprocess.run(
        [sys.executable, "-c", PULL, *names], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def pushed(llama_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path, str]]:
    """A hub to which the client has pushed the bundle, a home that has pulled it, and the commit."""
    home = tmp_path_factory.mktemp("home")
    with running_hub() as hub:
        done = ptexport("push", llama_bundle, "you/reviews", "--json", **hub.environment(home))
        assert done.returncode == 0, done.stderr
        commit = json.loads(done.stdout)["commit_url"].rpartition("/")[2]
        yield hub, home, commit


def test_a_pushed_bundle_is_pulled_and_predicts_the_same(
    pushed: tuple[Hub, Path, str], llama_bundle: Path, tmp_path: Path
) -> None:
    hub, _, commit = pushed
    done = predict(NAME, **hub.environment(tmp_path, token=None))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == in_process("predict", llama_bundle, *TEXTS, "--json").stdout
    folder = tmp_path / "cache" / "ptexport" / "hub" / f"you--reviews--{commit}"
    files = {path.name: path.read_bytes() for path in llama_bundle.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in folder.iterdir())


def test_without_the_network_the_last_commit_is_used(
    pushed: tuple[Hub, Path, str], llama_bundle: Path, tmp_path: Path
) -> None:
    hub, _, commit = pushed
    environment = hub.environment(tmp_path)
    first = predict(NAME, **environment)
    away = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = predict(NAME, **away)
    assert done.stdout == first.stdout
    assert done.stderr == f"{NAME}: the hub cannot be reached; uses commit {commit[:12]} from the cache\n"
    done = predict(NAME, **(away | {"HF_HUB_OFFLINE": "1"}))
    assert done.stdout == first.stdout
    shutil.rmtree(
        tmp_path / "cache" / "ptexport" / "hub" / f"you--reviews--{commit}"
    )  # as `ptexport cache --prune` does
    done = predict(NAME, **(away | {"HF_HUB_OFFLINE": "1"}))
    assert (done.returncode, done.stdout) == (1, "")
    assert "not in the cache, and the hub cannot be reached (HF_HUB_OFFLINE is set); check" in done.stderr


def test_a_hub_that_is_out_of_order_is_as_good_as_none(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    commit = hub.put("you/reviews", llama_bundle)
    environment = hub.environment(tmp_path)
    (folder,) = pull(NAME, **environment)
    hub.answer = lambda request: 503
    assert pull(NAME, **environment) == [folder]
    hub.answer = lambda request: 403  # a hub that says no is believed
    (said,) = pull(NAME, **environment)
    assert said.startswith(f"HubError {NAME}: cannot be downloaded from the hub (403 Forbidden")
    assert pull(f"{NAME}@{commit}", **environment) == [folder]


def test_a_branch_moves_and_a_commit_stays(hub: Hub, llama_bundle: Path, bert_bundle: Path, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    old = hub.put("you/reviews", llama_bundle)
    hub.repositories["you/reviews"].tags["v1"] = old
    (first,) = pull(NAME, **environment)
    new = hub.put("you/reviews", bert_bundle)
    hub.requests.clear()
    assert pull(f"{NAME}@{old}", **environment) == [first]
    assert [request for request in hub.requests if "you/reviews" in request] == []
    assert pull(NAME, f"{NAME}@v1", **environment) == [first.replace(old, new), first]
    assert Engine.open(first.replace(old, new)).manifest.name == Engine.open(bert_bundle).manifest.name


def test_python_opens_names_too(pushed: tuple[Hub, Path, str], llama_bundle: Path, tmp_path: Path) -> None:
    hub, _, _ = pushed
    code = f"from ptexport.runtime import Engine; e = Engine.open({NAME!r}); print(e.manifest.name, e.logits(['slow']))"
    environment = os.environ | hub.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    local = Engine.open(llama_bundle)
    assert done.stdout == f"{local.manifest.name} {local.logits(['slow'])}\n"


@pytest.fixture
def in_cache(llama_bundle: Path, tmp_path: Path) -> Path:
    """A cache with the bundle under a commit of 40 zeros, which needs no request."""
    shutil.copytree(llama_bundle, tmp_path / "cache" / "ptexport" / "hub" / f"you--reviews--{'0' * 40}")
    return tmp_path / "cache"


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect", "doctor"])
def test_commands_take_names(command: str, in_cache: Path, llama_bundle: Path, rows_file: Path) -> None:
    arguments = {
        "predict": ["predict", "BUNDLE", "slow"],
        "evaluate": ["evaluate", "BUNDLE", "--data", rows_file],
        "inspect": ["inspect", "BUNDLE"],
        "doctor": ["doctor", "--run", "BUNDLE"],
    }[command]
    said = []
    for bundle in (llama_bundle, f"{NAME}@{'0' * 40}"):
        words = [bundle if word == "BUNDLE" else word for word in arguments]
        done = in_process(*words, "--json", XDG_CACHE_HOME=str(in_cache))
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    names = [json.dumps(record).count('"reviews"') for record in said]
    assert names[0] == names[1]
    assert said[0].keys() == said[1].keys()


def test_a_bench_takes_names_to_compare_with(in_cache: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """Both are asked for: the first is in the cache, and the second cannot be."""
    names = f"{NAME}@{'0' * 40},hub:you/nothing"
    arguments = ["bench", "speed", llama_bundle, "--against", names, "--out", tmp_path / "out"]
    done = in_process(*arguments, XDG_CACHE_HOME=str(in_cache))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ptexport: hub:you/nothing: not in the cache, and the hub cannot be")


def test_every_command_takes_names() -> None:
    """All but those that read a bundle which is to be sent or changed."""
    plain = set()
    for command in [*cli.commands.values(), *cli.commands["bench"].commands.values()]:  # type: ignore[attr-defined]
        for parameter in command.params:
            if parameter.name in ("bundle", "bundles", "backbone", "folder"):
                assert isinstance(parameter.type, click.Path)
                if not isinstance(parameter.type, BundleFolder):
                    plain.add(command.name)
    assert plain == {"push", "sign"}


def test_a_signature_comes_along(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    keys = {}
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        keys[name] = tmp_path / f"{name}.pub"
        keys[name].write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
    signed = Path(shutil.copytree(llama_bundle, tmp_path / "signed"))
    sign_folder(signed, tmp_path / "ours.pem")
    hub.put("you/reviews", signed)
    (folder,) = pull(NAME, **hub.environment(tmp_path / "home"))
    assert Engine.open(folder, require_signature=keys["ours"]).labels
    with pytest.raises(SignatureError, match="is not a signature made with the key"):
        Engine.open(folder, require_signature=keys["theirs"])


def test_what_is_refused(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    hub.put("you/reviews", llama_bundle)
    hub.put("you/secret", llama_bundle, private=True)
    hub.put("you/gated", llama_bundle, refused="GatedRepo")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.put("you/model", tmp_path / "model")
    expected = {
        "hub:reviews": "HubError hub:reviews: not a name on the hub, need hub:OWNER/NAME or hub:OWNER/NAME@REVISION; "
        "correct it",
        "hub:you/re--views": "HubError hub:you/re--views: not on the hub; check the name, or set HF_TOKEN if it is "
        "private",
        "hub:you/nothing": "HubError hub:you/nothing: not on the hub; check the name, or set HF_TOKEN if it is private",
        "hub:you/secret": "HubError hub:you/secret: not on the hub; check the name, or set HF_TOKEN if it is private",
        "hub:you/gated": "HubError hub:you/gated: gated on the hub; accept its terms on its page there, then set "
        "HF_TOKEN or run 'hf auth login'",
        "hub:you/reviews@v9": "HubError hub:you/reviews@v9: has no revision 'v9' on the hub; look up its commits there",
        "hub:you/model": "BundleError hub:you/model: has no manifest.json on the hub, need a bundle that 'ptexport "
        "push' put there; check the name",
    }
    assert pull(*expected, **hub.environment(tmp_path, token=None)) == list(expected.values())
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (unreached,) = pull("hub:you/new", **(hub.environment(tmp_path) | away))
    assert unreached.startswith("HubError hub:you/new: not in the cache, and the hub cannot be reached; check the name")
    (owned,) = pull("hub:you/secret", **hub.environment(tmp_path))
    assert Path(owned).is_dir(), "its owner has it"


def test_a_network_that_answers_itself(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    """As one does that wants people to log in first."""
    hub.put("you/reviews", llama_bundle)
    hub.answer = lambda request: 200
    (said,) = pull(NAME, **hub.environment(tmp_path))
    assert said.startswith(f"HubError {NAME}: cannot be downloaded from the hub (Expecting value: line 1")


def test_a_commit_becomes_no_path(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    """The folder of a commit stays in the cache, whatever a server names one."""
    hub.put("you/reviews", llama_bundle)
    repository = hub.repositories["you/reviews"]
    repository.commits["../" * 12 + "abcd"] = repository.commits.popitem()[1]
    (said,) = pull(NAME, **hub.environment(tmp_path))
    assert said.startswith(f"HubError {NAME}: the hub names the commit '../")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_a_changed_file_is_refused_and_nothing_of_it_stays(
    file: str, hub: Hub, llama_bundle: Path, tmp_path: Path
) -> None:
    commit = hub.put("you/reviews", llama_bundle)
    files = hub.repositories["you/reviews"].commits[commit]
    right = files[file]
    files[file] = right[:-2] + bytes([right[-2] ^ 1]) + right[-1:]
    (said,) = pull(NAME, **hub.environment(tmp_path))
    assert said.startswith(f"BundleError {NAME}: {file}: ")
    assert cached(tmp_path) == []
    files[file] = right
    assert pull(NAME, **hub.environment(tmp_path))[0].endswith(commit)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_is_continued(
    number: signal.Signals, hub: Hub, llama_bundle: Path, tmp_path: Path
) -> None:
    commit = hub.put("you/reviews", llama_bundle)
    environment = hub.environment(tmp_path) | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    hub.stalls = "model.onnx.data"
    process = start("predict", NAME, *TEXTS, "--json", **environment)
    assert hub.stalled.wait(30)
    partial = tmp_path / "cache" / "ptexport" / "hub" / f".you--reviews--{commit}.partial"
    process.send_signal(number)
    process.wait(30)
    assert "Traceback" not in process.communicate()[1]
    assert cached(tmp_path) == [partial.name]
    hub.stalls = None
    hub.release.set()
    hub.requests.clear()
    done = predict(NAME, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == in_process("predict", llama_bundle, *TEXTS, "--json").stdout
    assert cached(tmp_path) == [f"you--reviews--{commit}", "you--reviews--main.commit"]
    assert f"GET /you/reviews/resolve/{commit}/model.onnx" not in hub.requests, "it was whole"


def test_a_full_disk(hub: Hub, llama_bundle: Path, tmp_path: Path) -> None:
    """Played by the largest size of a file that the process may write."""
    commit = hub.put("you/reviews", llama_bundle)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    command = [sys.executable, "-c", limit + PULL, NAME]
    environment = os.environ | hub.environment(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (said,) = json.loads(done.stdout)
    folder = tmp_path / "cache" / "ptexport" / "hub" / f"you--reviews--{commit}"
    assert said == (
        f"OutputError {folder}: cannot be written (File too large); set XDG_CACHE_HOME to a writable folder with "
        "enough space"
    )
    assert cached(tmp_path) == [f".{folder.name}.partial"]
    assert pull(NAME, **hub.environment(tmp_path)) == [str(folder)]
