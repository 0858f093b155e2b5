"""A folder on disk -> a verified Bundle.

No file is parsed before it is known to be a regular file of the right size. Only the manifest is parsed before its hash
is checked. `docs/trust.md` lists the order of the checks and their limits.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from ptexport.runtime.bundle.engine_model import engine_model
from ptexport.runtime.bundle.manifest import ALL, MAX_MANIFEST_BYTES, FileEntry, Manifest, TaskEntry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_check import check_model
from ptexport.runtime.bundle.signature import SIGNATURE, verify_signature
from ptexport.runtime.errors import BundleError, reason

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"
TEMPLATES = "templates.json"
ENGINE_MODEL = "engine.onnx"
ENGINE = "engine.rtx"
README = "README.md"

ONE_TASK_FILES = (MODEL, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, CONFIG)
"""Hashed files of a bundle of one task, which the runtime, Transformers and Optimum read."""
MULTITASK_FILES = (MODEL, WEIGHTS, TOKENIZER, TEMPLATES)
"""Hashed files of a bundle of several tasks."""
ENGINE_FILES = (ENGINE_MODEL, ENGINE)
"""Hashed files that a bundle for TensorRT RTX has too: an EP-context model, which names the engine, and the engine."""
PARITY_JSON = "parity.json"
PARITY_HTML = "parity.html"  # in bundles of ptexport 0.1 only; now `ptexport inspect --html` draws it
FILES = (*ONE_TASK_FILES, TEMPLATES, *ENGINE_FILES, MANIFEST, README, PARITY_JSON, PARITY_HTML, SIGNATURE)
"""All files that a bundle may have."""


class FileStatus(NamedTuple):
    """Status of a file, which differs for another file, and for the same file after a write."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A folder whose files matched its manifest when it was opened.

    Attributes:
        path: the folder.
        manifest: its manifest.
        labels: label names of each task, in the order of `manifest.tasks`.
        statuses: inode, size and times of each file when it was verified.
        contents: contents of files that are not in the folder, by name.
    """

    path: Path
    manifest: Manifest
    labels: list[list[str]]
    statuses: Mapping[str, FileStatus] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, *, require_signature: str | Path | None = None) -> "Bundle":
        """Verify a bundle: kinds of files, signature, the manifest's digest, sizes, hashes, and the graph's operators.

        `docs/trust.md` promises this order.

        Args:
            path: the folder.
            require_signature: PEM file with the public key of the required signature; None: none is required.

        Raises:
            BundleError: a file is missing, or differs from the manifest.
            MissingExtraError: a signature is required, and model-signing is not installed.
        """
        names = MULTITASK_FILES if (path / TEMPLATES).exists() else ONE_TASK_FILES
        if (path / ENGINE_MODEL).exists() or (path / ENGINE).exists():
            names = (*names, *ENGINE_FILES)
        statuses = _look(path, (MANIFEST, *names))
        hashes = {} if require_signature is None else verify_signature(path, Path(require_signature))
        manifest = read_manifest(_read(path / MANIFEST), str(path / MANIFEST))
        if manifest.engine is not None and ENGINE not in names:
            raise _missing(path, ENGINE)
        _check_files(path, manifest.files, names, statuses, hashes)
        _check_tasks(manifest.tasks, names, str(path / MANIFEST))
        model = _read(path / MODEL)
        check_model(model, str(path / MODEL), {WEIGHTS: manifest.files[WEIGHTS].size_bytes})
        if ENGINE in names:
            _check_engine(path, manifest, model)
        config = path / CONFIG
        labels = [read_labels(_read(config), config) if task.labels is None else task.labels for task in manifest.tasks]
        return cls(path=path, manifest=manifest, labels=labels, statuses=statuses)

    def read(self, name: str) -> bytes:
        """Read a file again, as it was when the bundle was verified.

        Raises:
            BundleError: it cannot be read, or was changed since.
        """
        data = self.contents.get(name) or _read(self.path / name)
        if entry_of(data) != self.manifest.files[name]:
            raise BundleError(f"{self.path / name}: was changed since the bundle was opened; open it again")
        return data


def check_unchanged(bundle: Bundle) -> None:
    """Check that no file was replaced or written since the bundle was verified, for example by a deployment.

    Raises:
        BundleError: a file was.
    """
    for name, status in bundle.statuses.items():
        file = bundle.path / name
        try:
            same = _status(file.lstat()) == status
        except OSError:
            same = False
        if not same:
            raise BundleError(f"{file}: was changed while the bundle was opened; open it again")


def file_entry(path: Path) -> FileEntry:
    """Hash a file for the manifest."""
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=path.stat().st_size)


def entry_of(data: bytes) -> FileEntry:
    """Hash the content of a file for the manifest."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _missing(path: Path, name: str) -> BundleError:
    """Make the error about a file that a bundle lacks; a run lacks all of them."""
    if not path.exists():
        return BundleError(f"{path}: no such folder, need one made by 'ptexport export'; check the path")
    if name != MANIFEST:
        return BundleError(f"{path / name}: missing; copy the bundle again")
    if (path / "metrics.json").is_file():
        return BundleError(f"{path}: is a run, need a bundle; export it with: ptexport export {path} --out BUNDLE")
    return BundleError(f"{path / name}: missing; need a bundle folder made by 'ptexport export'")


def _look(path: Path, names: tuple[str, ...]) -> dict[str, FileStatus]:
    """Check before any is opened that all are regular files, and that the manifest is small enough."""
    if path.is_file():
        raise BundleError(f"{path}: got a file, need the folder of a bundle; give {path.parent}")
    statuses = {}
    for name in names:
        try:
            status = (path / name).lstat()
        except FileNotFoundError as e:
            raise _missing(path, name) from e
        except OSError as e:
            raise BundleError(
                f"{path / name}: cannot be read ({e.strerror}); check the path and its permissions"
            ) from e
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path / name}: not a regular file; copy the bundle again, following links")
        if status.st_nlink > 1:
            raise BundleError(
                f"{path / name}: got {status.st_nlink} hard links, need one, since the file can be changed through "
                "another; copy the bundle again, without links"
            )
        if name == MANIFEST and status.st_size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path / name}: got {status.st_size} bytes, need at most {MAX_MANIFEST_BYTES}; export again"
            )
        statuses[name] = _status(status)
    return statuses


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check the path and its permissions") from e


class _Config(msgspec.Struct):
    """The part of `config.json` that lists labels."""

    id2label: dict[int, str]


def read_labels(config: bytes, path: Path) -> list[str]:
    """Read the labels in a `config.json`; `path` is for messages."""
    try:
        names = msgspec.json.decode(config, type=_Config).id2label
        return [names[i] for i in range(len(names))]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as e:
        raise BundleError(f"{path}: got no labels by number ({reason(e)[:200]}), need `id2label`; export again") from e


def _check_tasks(tasks: Sequence[TaskEntry], files: tuple[str, ...], where: str) -> None:
    """Check that tasks have different names, and that the bundle has the files for so many."""
    if (len(tasks) > 1) != (TEMPLATES in files):
        raise BundleError(f"{where}: lists {len(tasks)} task(s), which does not match its files; export again")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names) or (ALL in names and len(names) > 1):
        raise BundleError(
            f"{where}: lists the tasks {', '.join(names)[:200]}, need different names other than {ALL!r}; export again"
        )
    if len(tasks) > 1 and any(task.labels is None for task in tasks):
        raise BundleError(f"{where}: a task of several has no labels, need them listed; export again")


def _check_engine(path: Path, manifest: Manifest, model: bytes) -> None:
    """Check that the EP-context model names this bundle's engine and nothing else: ONNX Runtime opens what it names."""
    where = path / ENGINE_MODEL
    if manifest.engine is None:
        raise BundleError(f"{path / MANIFEST}: lists an engine's files and describes no engine; export again")
    if _read(where) != engine_model(model, str(path / MODEL), ENGINE):
        raise BundleError(
            f"{where}: is not what an export writes beside {MODEL}; copy the bundle again from its source"
        )


def _check_files(
    path: Path,
    files: Mapping[str, FileEntry],
    need: tuple[str, ...],
    statuses: Mapping[str, FileStatus],
    hashes: Mapping[str, str],
) -> None:
    """Check sizes, then the hashes that the signature did not check."""
    if sorted(files) != sorted(need):
        raise BundleError(f"{path / MANIFEST}: lists {str(sorted(files))[:200]}, need {sorted(need)}; export again")
    for name, entry in files.items():
        size = statuses[name].size_bytes
        if size != entry.size_bytes:
            raise BundleError(f"{path / name}: got {size} bytes, need {entry.size_bytes}; copy the bundle again")
    for name, entry in files.items():
        try:
            sha256 = hashes.get(name) or file_entry(path / name).sha256
        except OSError as e:
            raise BundleError(f"{path / name}: cannot be read ({e.strerror}); check its permissions") from e
        if sha256 != entry.sha256:
            raise BundleError(
                f"{path / name}: its sha256 differs from the manifest's; it was changed, copy the bundle again"
            )
