"""A folder -> what it holds: a run, an adapter or a classifier; without torch."""

from pathlib import Path
from typing import Literal

from ptexport.runtime.errors import CheckpointError
from ptexport.toolkit.imports.adapter_files import ADAPTER_CONFIG
from ptexport.toolkit.imports.classifier_files import CLASSIFIER, architectures_of
from ptexport.toolkit.imports.config import read_object
from ptexport.toolkit.run.run import CHECK_ROWS, CONFIG, METRICS

Source = Literal["run", "adapter", "classifier"]

_OF_RUN = (METRICS, CHECK_ROWS, "best")
"""Any of these marks a run, or a sweep; `Run.read` says what is missing."""


def find_source(folder: Path) -> Source:
    """Find out what a folder holds.

    Raises:
        CheckpointError: it holds nothing that can be exported, or does not exist.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give a run, a PEFT adapter or a classifier (of a name on the hub, make a run "
            "first: ptexport import classifier NAME)"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    if any((folder / name).exists() for name in _OF_RUN):
        return "run"
    if (folder / CONFIG).is_file() and architectures_of(read_object(folder / CONFIG)):
        return "classifier"
    raise CheckpointError(
        f"{folder}: has neither {METRICS} (a run), nor {ADAPTER_CONFIG} (a PEFT adapter), nor {CONFIG} with "
        f"architectures …{CLASSIFIER} (a classifier); check the folder"
    )
