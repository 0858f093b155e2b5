"""What the steps of a GPU proof are given."""

from pathlib import Path

import pytest


@pytest.fixture
def case(llama_run: Path, llama_bundle: Path, tmp_path: Path) -> Path:
    """A folder with a run and its bundle in fp32."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "run").symlink_to(llama_run)
    (folder / "fp32-18").symlink_to(llama_bundle)
    return folder
