"""The notebook runs from the first cell to the last, in a kernel, as people run it."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from commands import ptexport_on_path
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(NOTEBOOK.parent)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (tmp_path / "programs").mkdir()
    with ptexport_on_path(tmp_path / "programs"):
        monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells if "outputs" in cell]
    assert "labels: billing (20 rows)" in said[1]
    assert "The bundle predicts the label of Transformers for all" in said[2]
    assert {line.split()[0] for line in said[3].splitlines()} <= {"billing", "delivery", "technical"}
    assert said[4].count('"id":"100') == 3
