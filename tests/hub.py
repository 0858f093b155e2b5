"""A small stand-in of the Hugging Face hub's API: what huggingface_hub 2.4 calls to push and to pull, on loopback.

It answers as the hub does, as far as its client shows: files above a size go to another place by Git LFS, and are
fetched through a redirect. Transfers by Xet, which the hub offers too, are switched off in the client.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LFS_BYTES = 20_000
TOKENS = {"hf_you": "you", "hf_reader": "reader"}
GIT_FILE = {".gitattributes": b"*.onnx filter=lfs\n"}


@dataclass
class Repository:
    """Commits, oldest first: files by commit. `refused` is the X-Error-Code for its files."""

    private: bool = False
    refused: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def commit_of(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else self.tags.get(revision)


class Hub:
    """The hub's state; tests read it and break it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.answer: Callable[[str], int | None] = lambda request: None
        """Status to give instead of an answer, by "METHOD path"."""
        self.stalls: str | None = None
        """Path that is sent by half, and not on before `release`."""
        self.stalled, self.release = threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def put(self, name: str, folder: Path, **state: Any) -> str:
        """Put the files of a folder there; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(**state))
        return repository.add(GIT_FILE | {path.name: path.read_bytes() for path in folder.iterdir()})

    def environment(self, home: Path, token: str | None = "hf_you") -> dict[str, str]:
        """Return what a client sets to reach this hub, with a home and caches of its own."""
        known = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HOME": str(home)}
        known |= {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), "COLUMNS": "200"}
        return known if token is None else {**known, "HF_TOKEN": token}


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a fresh process, since huggingface_hub reads its environment when it is imported."""
    code = "from ptexport.toolkit.cli.main import main; main()"
    pipe = subprocess.PIPE
    inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=inherited | environment,
    )


def ptexport(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess([*map(str, arguments)], process.returncode, out, err)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        status = self.hub.answer(f"{self.command} {path}")
        if status is not None:
            return self._send(status, b"")
        for methods, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is not None and self.command in methods:
                return answer(self, **match.groupdict())
        return self._send(404, b"")

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _send(self, status: int, content: bytes, code: str | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"no: {code}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _user(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Find a repository and a commit; None: an error was sent."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._user() != name.split("/")[0]):
            self._send(404 if self._user() else 401, b"", "RepoNotFound")
            return None
        commit = repository.commit_of(revision)
        if commit is None:
            self._send(404, b"", "RevisionNotFound")
            return None
        return repository, commit

    def _may_write(self, name: str) -> bool:
        if self._user() == name.split("/")[0]:
            return True
        self._send(403, b"", "Forbidden")
        return False

    def who_am_i(self) -> None:
        user = self._user()
        if user is None:
            return self._send(401, b"", "InvalidToken")
        return self._json({"name": user, "type": "user", "orgs": [{"name": "their-company"}]})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write(name):
            return None
        if name in self.hub.repositories:
            return self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].add(dict(GIT_FILE))
        return self._json({"url": f"{self.hub.url}/{name}"})

    def info(self, name: str, revision: str | None = None) -> None:
        found = self._repository(name, revision or "main")
        if found is not None:
            repository, commit = found
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        found = self._repository(name, revision)
        if found is not None:
            repository, commit = found
            files = repository.commits[commit].items()
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _blob(c)} for p, c in files])

    def resolve(self, name: str, revision: str, file: str) -> None:
        found = self._repository(name, revision)
        if found is None:
            return None
        repository, commit = found
        if repository.refused is not None:
            return self._send(403, b"", repository.refused)
        content = repository.commits[commit].get(file)
        if content is None:
            return self._send(404, b"", "EntryNotFound")
        headers = {"X_Repo_Commit": commit}
        if len(content) < LFS_BYTES:
            return self._send(200, content, ETag=f'"{_blob(content)}"', **headers)
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as the hub's storage is
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
        return self._send(302, b"", Location=f"{elsewhere}/lfs/{oid}?of={file}", **linked, **headers)

    def stored(self, oid: str) -> None:
        content = self.hub.objects[oid]
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.objects[oid] = self.body
            return self._send(200, b"")
        if self.path.endswith(f"of={self.hub.stalls}"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.release.wait()
            self.close_connection = True
            return None
        return self._send(200, content)

    def validate(self) -> None:
        front = json.loads(self.body)["content"].split("---\n")[1]
        right = isinstance(yaml.safe_load(front), dict)
        self._json({"errors": [] if right else [{"message": "not YAML"}], "warnings": []}, 200 if right else 400)

    def preupload(self, name: str, revision: str) -> None:
        found = self._repository(name, revision)
        if found is not None and self._may_write(name):
            files = json.loads(self.body)["files"]
            modes = [("lfs" if file["size"] >= LFS_BYTES else "regular", file["path"]) for file in files]
            self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for mode, path in modes]})

    def batch(self, name: str) -> None:
        if self._may_write(name):
            asked = json.loads(self.body)["objects"]
            for one in asked:
                self.hub.objects.setdefault(one["oid"], b"")
            places = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}} for one in asked]
            self._json({"transfer": "basic", "objects": places})

    def commit(self, name: str, revision: str) -> None:
        found = self._repository(name, revision)
        if found is None or not self._may_write(name):
            return None
        repository, parent = found
        files = dict(repository.commits[parent])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                assert value.get("parentCommit", parent) == parent
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line["key"]
                del files[value["path"]]
        new = repository.add(files)
        return self._json({"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{name}/commit/{new}"})


_NAMED = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", _Handler.who_am_i),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("GET",), f"/api/models/{_NAMED}", _Handler.info),
    (("GET",), f"/api/models/{_NAMED}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), f"/api/models/{_NAMED}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (("POST",), f"/api/models/{_NAMED}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), f"/api/models/{_NAMED}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("POST",), r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    (("GET", "PUT"), "/lfs/(?P<oid>[0-9a-f]+)", _Handler.stored),
    (("GET", "HEAD"), f"/{_NAMED}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]
