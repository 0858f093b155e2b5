"""The server under schemathesis 4: by the Open Inference Protocol's document, and by its own.

Follows https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) and
https://schemathesis.readthedocs.io.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conformance.started import TEXTS, Server, check_refused, outputs_of, text_tensor

PROTOCOL = Path(__file__).with_name("open_inference.yaml")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as connection:
        yield connection


def schemathesis(document: Path, server: Server, *only: str, examples: int) -> subprocess.CompletedProcess[str]:
    """Run schemathesis over a document, or over some of its paths, with the same requests each time."""
    options = {
        "--url": server.url,
        "--checks": ",".join(CHECKS),
        "--phases": "examples,coverage,fuzzing",
        "--max-examples": str(examples),
        "--seed": "1",
        "--request-timeout": "5",
        "--generation-database": "none",
        "--warnings": "off",
    }
    words = [word for option in (*options.items(), *(("--include-path", path) for path in only)) for word in option]
    command = [Path(sys.executable).with_name("st"), "run", document, *words, "--continue-on-failure", "--no-color"]
    return subprocess.run(
        command, cwd=document.parent, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"}
    )


def protocol_document(client: httpx.Client, folder: Path) -> Path:
    version = client.get("/v2/models/reviews").json()["versions"][0]
    path = folder / "protocol.yaml"
    path.write_text(PROTOCOL.read_text(encoding="utf-8").replace("VERSION", json.dumps(version)), encoding="utf-8")
    return path


def test_the_protocol_s_document_holds(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    done = schemathesis(protocol_document(client, tmp_path), server, examples=10)
    assert done.returncode == 0, done.stdout


def test_the_server_s_own_document_holds(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_bytes(client.get("/openapi.json").content)
    done = schemathesis(path, server, examples=8)
    assert done.returncode == 0, done.stdout


def test_a_document_that_does_not_hold_is_found_out(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    """The control: that an answer lacks a field, and that nothing is ever refused."""
    right = protocol_document(client, tmp_path).read_text(encoding="utf-8")
    cases = {
        "/v2": ("required: [name, version, extensions]", "required: [name, version, extensions, colour]"),
        "/v2/models/{model_name}": ("4XX: *refused", "499: *refused"),
    }
    for number, (place, (what, wrong)) in enumerate(cases.items()):
        assert what in right
        path = tmp_path / f"{number}.yaml"
        path.write_text(right.replace(what, wrong), encoding="utf-8")
        assert schemathesis(path, server, place, examples=2).returncode == 1


def test_the_server_s_own_document_names_every_path(client: httpx.Client) -> None:
    response = client.get("/openapi.json")
    document = response.json()
    assert document["openapi"].startswith("3.")
    assert document["info"].keys() >= {"title", "version"}
    named = {path.replace("model_name", "m").replace("model_version", "v") for path in document["paths"]}
    shapes = {tuple(part if part[:1] != "{" else "{}" for part in path.split("/")) for path in named}
    expected = {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models",
        "/v2/models/{}",
        "/v2/models/{}/ready",
        "/v2/models/{}/infer",
        "/v2/models/{}/versions/{}",
        "/v2/models/{}/versions/{}/ready",
        "/v2/models/{}/versions/{}/infer",
        "/v2/repository/index",
        "/predict",
        "/metrics",
    }
    assert {tuple(path.split("/")) for path in expected} <= shapes


def test_the_server_says_what_it_is_with_and_without_a_slash(client: httpx.Client) -> None:
    """The specification's text has `v2`, the document that it publishes has `/v2/`."""
    assert client.get("/v2/").json() == client.get("/v2").json()


def infer(client: httpx.Client, **changes: Any) -> httpx.Response:
    return client.post("/v2/models/reviews/infer", json={"inputs": [text_tensor(*TEXTS)], **changes})


def test_every_output_comes_unless_some_are_asked_for(client: httpx.Client) -> None:
    """ "Optional, if not specified all outputs produced by the model will be returned"."""
    produced = {output["name"] for output in client.get("/v2/models/reviews").json()["outputs"]}
    assert outputs_of(infer(client).json()).keys() == produced
    for name in produced:
        assert outputs_of(infer(client, outputs=[{"name": name}]).json()).keys() == {name}


def test_data_may_be_flat_or_nested(client: httpx.Client) -> None:
    """ "row-major order", flat or in arrays of the tensor's shape."""
    flat = infer(client, inputs=[text_tensor(*TEXTS, shape=[4, 1])]).json()
    nested = infer(client, inputs=[text_tensor(*TEXTS, shape=[4, 1], data=[[text] for text in TEXTS])]).json()
    assert flat["outputs"] == nested["outputs"] == infer(client).json()["outputs"]


def test_an_id_comes_back_only_if_one_was_given(client: httpx.Client) -> None:
    assert infer(client, id="42").json()["id"] == "42"
    assert "id" not in infer(client).json()


def test_the_answer_names_the_model_and_its_version(client: httpx.Client) -> None:
    (version,) = client.get("/v2/models/reviews").json()["versions"]
    answer = infer(client).json()
    assert (answer["model_name"], answer["model_version"]) == ("reviews", version)
    path = f"/v2/models/reviews/versions/{version}/infer"
    assert client.post(path, json={"inputs": [text_tensor(*TEXTS)]}).json() == answer


def test_every_failure_is_a_status_and_a_message(client: httpx.Client) -> None:
    check_refused(infer(client, inputs=[]), 400)
    check_refused(infer(client, outputs=[{"name": "boxes"}]), 400)
    check_refused(client.get("/v2/models/nobody"), 404)
    check_refused(client.get("/v2/models/reviews/versions/999"), 404)
    check_refused(client.post("/v2/models/nobody/infer", json={"inputs": [text_tensor("a")]}), 404)
