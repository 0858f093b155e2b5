"""The state of a training <-> resume.safetensors, so that an interrupted or killed training can be resumed."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ptexport.runtime.errors import OutputError, TrainError, reason
from ptexport.toolkit.data.splits import DataSplits
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.training.loop import Counters, Training


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that must be equal for a training to be resumed.

    Attributes:
        config: configuration of the run.
        data_sha256: sha256 over all rows; see `hash_data`.
        manual: hand-written templates.
    """

    config: RunConfig
    data_sha256: str
    manual: list[str]


def hash_data(data: DataSplits) -> str:
    """Return the sha256 over texts and labels in order, part by part."""
    digest = hashlib.sha256()
    for part in data.parts:
        rows = [[row.text, row.choices if row.text_b is None else row.text_b, row.label] for row in part]
        digest.update(msgspec.json.encode(rows))
    return digest.hexdigest()


def save_state(path: Path, training: Training, ticket: Ticket) -> None:
    """Write the state of a training atomically, even if the process is killed or the machine stops.

    Raises:
        OutputError, OSError: the file cannot be written.
    """
    metadata = {"ticket": msgspec.json.encode(ticket).decode(), "at": msgspec.json.encode(training.at).decode()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in training.tensors().items()}
    # In a folder, since safetensors writes a temporary file beside its target, and a kill would leave it there.
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.mkdir(exist_ok=True)
        save_file(tensors, temporary / path.name, metadata)
        with (temporary / path.name).open("rb") as file:
            os.fsync(file.fileno())
        (temporary / path.name).replace(path)
    except SafetensorError as e:  # safetensors' name for an OSError
        raise OutputError(f"{path}: cannot be written ({reason(e)}); free some space and continue with --resume") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # Ctrl-C may arrive here and end the training with its best epoch


def load_state(path: Path, training: Training, ticket: Ticket) -> None:
    """Restore a training from a file.

    Raises:
        TrainError: the file cannot be read.
        OutputError: the file belongs to a training with other options or data (the message names them).
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        old = msgspec.json.decode(metadata["ticket"], type=Ticket)
        at = msgspec.json.decode(metadata["at"], type=Counters)
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.DecodeError) as e:
        raise TrainError(f"{path}: cannot be resumed from ({reason(e)}); start again with --force") from e
    check_same(path, old, ticket)
    try:
        training.restore(tensors, at)
    except (KeyError, ValueError, RuntimeError) as e:
        raise TrainError(f"{path}: cannot be resumed from ({reason(e)}); start again with --force") from e


def check_same(path: Path, old: Ticket, now: Ticket) -> None:
    """Check that a training is resumed with the options and data it started with.

    Args:
        path: the file or folder, for messages.
        old: options and data at the start.
        now: options and data given now.

    Raises:
        OutputError: they differ (the message names the first difference).
    """
    before = dict(_flat(msgspec.to_builtins(old)))
    for name, value in _flat(msgspec.to_builtins(now)):
        if before.get(name) != value:
            raise OutputError(
                f"{path}: started with {name} {before.get(name)!r}, got {value!r}; give the same options and data, "
                "or choose another name"
            )


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dictionaries, with their path."""
    leaves: list[tuple[str, Any]] = []
    for name, value in record.items():
        leaves += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return leaves
