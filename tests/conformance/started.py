"""`ptexport serve` in a process of its own, and what is asked of every refusal."""

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from servers import start

TEXTS = ["the film was bright", "slow", "Владивосток", "two words"]


@dataclass(frozen=True)
class Server:
    """A server that runs: where it listens, and its process."""

    url: str
    grpc: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """Host and port of HTTP, as tritonclient wants them."""
        return self.url.removeprefix("http://")

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def connect(self) -> socket.socket:
        host, _, port = self.address.partition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes as they are, and return all that comes until the server closes or 30 s pass."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # it may refuse before it has read all, which is right
                connection.sendall(request)
            answer = bytearray()
            with contextlib.suppress(ConnectionError):
                while block := connection.recv(65536):
                    answer += block
            return bytes(answer)

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None, "the server's process has ended"
        return int(found[1]) * 1024


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    """Run `ptexport serve` with these arguments while the block runs; at the end it must stop with success."""
    process, record = start(*arguments, "--grpc-port", 0)
    url, grpc = record["addresses"]
    try:
        yield Server(url, grpc.removeprefix("grpc://"), process)
    finally:
        process.terminate()
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    assert process.returncode == 0, said
    assert "Traceback" not in said


def check_refused(response: httpx.Response, *statuses: int) -> str:
    """A request is refused as it should be: one of these statuses, and one sentence (which is returned)."""
    assert response.status_code in statuses, f"{response.status_code} {response.text[:300]}"
    assert response.headers["content-type"].split(";")[0] == "application/json"
    assert response.json().keys() == {"error"}
    sentence: str = response.json()["error"]
    assert re.match(r"[^:\n]+: \S[^\n]*$", sentence), sentence
    return sentence


def text_tensor(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}


def bytes_tensor(*texts: bytes) -> bytes:
    """Strings as the binary tensor extension writes them: each after its length, four bytes, little-endian."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def strings_of(data: bytes) -> list[str]:
    """Read what `bytes_tensor` writes."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end].decode())
        data = data[end:]
    return found


def binary_request(header: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Arguments of httpx's `post` for a request with binary tensors."""
    start = json.dumps(header).encode()
    return {"content": start + b"".join(tensors), "headers": {"Inference-Header-Content-Length": str(len(start))}}


def outputs_of(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {output["name"]: output for output in answer["outputs"]}
