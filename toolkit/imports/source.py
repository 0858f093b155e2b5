"""A folder -> what it holds: a run, an adapter or a classifier; without torch, so that a wrong folder fails at once."""

import json
from pathlib import Path
from typing import Literal

from ptexport.runtime.errors import CheckpointError, reason
from ptexport.toolkit.run.run import CHECK_ROWS, CONFIG, METRICS

Source = Literal["run", "adapter", "classifier"]

ADAPTER_CONFIG = "adapter_config.json"
_CLASSIFIER = "ForSequenceClassification"
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
    architectures = _architectures(folder / CONFIG)
    if any(name.endswith(_CLASSIFIER) for name in architectures):
        return "classifier"
    if architectures:
        raise CheckpointError(
            f"{folder}: holds a {architectures[0]}, need a …{_CLASSIFIER}; train it with ptexport train, or fine-tune "
            "a classifier"
        )
    raise CheckpointError(
        f"{folder}: has neither {METRICS} (a run), nor {ADAPTER_CONFIG} (a PEFT adapter), nor {CONFIG} with "
        f"architectures …{_CLASSIFIER} (a classifier); check the folder"
    )


def _architectures(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: cannot be read ({reason(e)}); save the model again") from e
    names = record.get("architectures") if isinstance(record, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
