"""A folder -> what it holds: a run, an adapter or a classifier; without torch, so that a wrong folder fails at once."""

import json
from pathlib import Path
from typing import Any, Literal

from ptexport.runtime.errors import CheckpointError, reason
from ptexport.toolkit.methods import MethodName
from ptexport.toolkit.run.run import CHECK_ROWS, CONFIG, METRICS

Source = Literal["run", "adapter", "classifier"]

METHODS: dict[str, MethodName] = {
    "P_TUNING": "p-tuning",
    "PROMPT_TUNING": "prompt-tuning",
    "PREFIX_TUNING": "prefix",
    "LORA": "lora",
}
"""PEFT's name of each method -> ptexport's."""
TASKS = ("SEQ_CLS", "CAUSAL_LM")
WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_CLASSIFIER = "ForSequenceClassification"
_OF_RUN = (METRICS, CHECK_ROWS, "best")
"""Any of these marks a run, or a sweep; `Run.read` says what is missing."""

# The first applies to some rows only, the second imports any module by name, the third shares weights between layers.
_REFUSED_SETTINGS = ("alora_invocation_tokens", "megatron_config", "layer_replication")


def find_source(folder: Path) -> Source:
    """Find out what a folder holds.

    Raises:
        CheckpointError: it holds nothing that can be exported, or does not exist; see also `check_adapter`.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give a run, a PEFT adapter or a classifier (of a name on the hub, make a run "
            "first: ptexport import classifier NAME)"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        check_adapter(folder)
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


def check_adapter(folder: Path) -> tuple[str, str]:
    """Check what can be checked of an adapter without PEFT; returns the kind, one of METHODS, and the task.

    Raises:
        CheckpointError: the folder holds no adapter, a pickled one, or one whose kind or task is not supported.
    """
    record = _read_config(folder)
    kind, task = record.get("peft_type"), record.get("task_type")
    if kind not in METHODS:
        raise CheckpointError(f"{folder}: got peft_type {kind}, need {', '.join(METHODS)}; not supported")
    if task not in TASKS:
        raise CheckpointError(f"{folder}: got task_type {task}, need {' or '.join(TASKS)}; not supported")
    for name in _REFUSED_SETTINGS:
        if record.get(name):
            raise CheckpointError(f"{folder / ADAPTER_CONFIG}: sets {name}, which cannot be merged; not supported")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "has only adapter_model.bin, a pickle, which can run code" if pickled else f"has no {WEIGHTS}"
        raise CheckpointError(f"{folder}: {why}; load it with PEFT and save it with safe_serialization=True")
    return kind, task


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: not a PEFT adapter, has no {ADAPTER_CONFIG}; give the folder that save_pretrained wrote"
        )
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: cannot be read ({reason(e)}); save the adapter again") from e
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: got {type(record).__name__}, need an object; save the adapter again")
    return record


def _architectures(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: cannot be read ({reason(e)}); save the model again") from e
    names = record.get("architectures") if isinstance(record, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
