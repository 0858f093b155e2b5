"""A training under way <-> resume.safetensors, so that one that was stopped, or killed, goes on where it was."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ptexport.runtime.errors import OutputError, TrainError, reason
from ptexport.toolkit.data.splits import Data
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.training.loop import Counters, Training


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be the same for a training to go on.

    Attributes:
        config: of the run.
        data_sha256: of all its rows.
        manual: hand-written templates to compare with.
    """

    config: RunConfig
    data_sha256: str
    manual: list[str]


def hash_data(data: Data) -> str:
    """Hash texts and labels in order, part by part, wherever they came from."""
    digest = hashlib.sha256()
    for part in (data.train, data.dev, data.test):
        rows = [[row.text, row.choices if row.text_b is None else row.text_b, row.label] for row in part]
        digest.update(msgspec.json.encode(rows))
    return digest.hexdigest()


def save_state(path: Path, training: Training, ticket: Ticket) -> None:
    """Write a training's state, whole or not at all, whenever the process or the machine stops.

    Raises:
        OutputError, OSError: the disk refuses.
    """
    metadata = {"ticket": msgspec.json.encode(ticket).decode(), "at": msgspec.json.encode(training.at).decode()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in training.tensors().items()}
    # A folder, since safetensors writes beside the file under a name of its own, which a kill leaves there.
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.mkdir(exist_ok=True)
        save_file(tensors, temporary / path.name, metadata)
        with (temporary / path.name).open("rb") as file:
            os.fsync(file.fileno())
        (temporary / path.name).replace(path)
    except SafetensorError as e:  # its name for what the disk says
        raise OutputError(f"{path}: cannot be written ({reason(e)}); free some space and go on with --resume") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # Ctrl-C may come here, and the training end with what it has


def load_state(path: Path, training: Training, ticket: Ticket) -> None:
    """Take a training back to the state in a file.

    Raises:
        TrainError: the file cannot be read.
        OutputError: it is of a training with other options or data (says which).
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        old = msgspec.json.decode(metadata["ticket"], type=Ticket)
        at = msgspec.json.decode(metadata["at"], type=Counters)
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.DecodeError) as e:
        raise TrainError(f"{path}: cannot be gone on from ({reason(e)}); start again with --force") from e
    check_same(path, old, ticket)
    try:
        training.restore(tensors, at)
    except (KeyError, ValueError, RuntimeError) as e:
        raise TrainError(f"{path}: cannot be gone on from ({reason(e)}); start again with --force") from e


def check_same(path: Path, old: Ticket, now: Ticket) -> None:
    """Check that what was begun is what is asked for now.

    Raises:
        OutputError: it is not (says what differs first).
    """
    before = dict(_flat(msgspec.to_builtins(old)))
    for name, value in _flat(msgspec.to_builtins(now)):
        if before.get(name) != value:
            raise OutputError(
                f"{path}: begun with {name} {before.get(name)!r}, got {value!r}; give the same options and data, "
                "or choose another name"
            )


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dictionaries, by their path."""
    leaves: list[tuple[str, Any]] = []
    for name, value in record.items():
        leaves += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return leaves
