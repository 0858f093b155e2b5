"""A folder on disk -> a verified Bundle; knows hashes and paths, nothing of graphs or tokens."""

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ptexport.runtime.errors import BundleError
from ptexport.runtime.manifest import FileEntry, Manifest, TasksManifest

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"
TEMPLATES = "templates.json"
README = "README.md"

HASHED = (MODEL, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, CONFIG)
"""What the runtime, Transformers and Optimum read. The README beside them is for people."""
PARITY_JSON = "parity.json"
PARITY_HTML = "parity.html"
FILES = (*HASHED, MANIFEST, README, PARITY_JSON, PARITY_HTML)
"""All files of a bundle."""
HASHED_TASKS = (MODEL, WEIGHTS, TOKENIZER, TEMPLATES)
"""What the runtime reads of a bundle of many tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A folder whose files are what its manifest says they are, at the time it was opened."""

    path: Path
    manifest: Manifest
    labels: list[str]

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Verify a bundle: the manifest's digest, then every file's kind, size and sha256.

        Raises:
            BundleError: anything is missing or differs.
        """
        if holds_tasks(path):
            raise BundleError(
                f"{path}: holds many tasks, need one; open it with TaskEngine, or name a task with --task"
            )
        manifest = Manifest.from_json(_read(path / MANIFEST), str(path / MANIFEST))
        _check_files(path, manifest.files, HASHED)
        labels = _open_labels(path / CONFIG) if manifest.labels is None else manifest.labels
        return cls(path=path, manifest=manifest, labels=labels)


def holds_tasks(path: Path) -> bool:
    """Whether a bundle was made of several runs."""
    return (path / TEMPLATES).exists()


def open_tasks(path: Path) -> TasksManifest:
    """Verify a bundle of many tasks, as `Bundle.open` does one.

    Raises:
        BundleError: it holds one task, or anything is missing or differs.
    """
    if not holds_tasks(path):
        raise BundleError(f"{path / TEMPLATES}: missing; need a bundle made of several runs by 'ptexport export'")
    manifest = TasksManifest.from_json(_read(path / MANIFEST), str(path / MANIFEST))
    _check_files(path, manifest.files, HASHED_TASKS)
    return manifest


def file_entry(path: Path) -> FileEntry:
    """Describe a file for the manifest."""
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=path.stat().st_size)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise BundleError(f"{path}: missing; need a bundle folder made by 'ptexport export'") from e
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check the path and its permissions") from e


class _Config(msgspec.Struct):
    """What a `config.json` says of labels."""

    id2label: dict[int, str]


def _open_labels(path: Path) -> list[str]:
    try:
        names = msgspec.json.decode(_read(path), type=_Config).id2label
        return [names[i] for i in range(len(names))]
    except (msgspec.DecodeError, KeyError) as e:
        raise BundleError(f"{path}: does not list its labels by number ({e}); export again") from e


def _check_files(path: Path, files: dict[str, FileEntry], need: tuple[str, ...]) -> None:
    if sorted(files) != sorted(need):
        raise BundleError(f"{path / MANIFEST}: lists {sorted(files)}, need {sorted(need)}; export again")
    for name, entry in files.items():
        _check(path / name, entry)


def _check(path: Path, entry: FileEntry) -> None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: not a regular file; copy the bundle again, following links")
        if status.st_size != entry.size_bytes:
            raise BundleError(f"{path}: got {status.st_size} bytes, need {entry.size_bytes}; copy the bundle again")
        if file_entry(path).sha256 != entry.sha256:
            raise BundleError(f"{path}: its sha256 differs from the manifest's; it was changed, copy the bundle again")
    except FileNotFoundError as e:
        raise BundleError(f"{path}: missing; copy the bundle again") from e
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
