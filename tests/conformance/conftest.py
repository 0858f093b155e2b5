"""Servers of tiny bundles: of one task, of two, and one that asks for a token."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.started import Server, serving

from ptexport.runtime import Engine

TOKEN = "correct-horse-battery-staple"  # of a test's server


@pytest.fixture(scope="module")  # not longer: engines of one backbone share a session, which other tests see freed
def engine(llama_bundle: Path) -> Iterator[Engine]:
    with Engine.open(llama_bundle) as opened:
        yield opened


@pytest.fixture(scope="session")
def both_bundle() -> Path:
    """A bundle of two tasks, `tone` and `mood`, in the first format."""
    return Path(__file__).parents[1] / "golden" / "format-1" / "both"


@pytest.fixture(scope="module")
def server(llama_bundle: Path) -> Iterator[Server]:
    """A server of the model `reviews`."""
    with serving(llama_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def server_of_two(both_bundle: Path) -> Iterator[Server]:
    """A server of the models `tone` and `mood`."""
    with serving(both_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def locked_server(llama_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers only who knows the token."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n", encoding="ascii")
    file.chmod(0o600)
    with serving(llama_bundle, "--token-file", file) as running:
        yield running


@pytest.fixture(scope="session")
def token() -> str:
    return TOKEN
