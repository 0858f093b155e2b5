"""What is new for the tasks of a bundle <-> one .ptpack file; without torch, Transformers or onnx.

A pack is a safetensors file with the task arrays. Its metadata has `format`, `record` (a PackRecord as JSON) and
`digest`. A pack is taken from a bundle that was compared with the model. It lacks what all bundles of the backbone have
in common: weights, graph and vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ptexport.runtime.bundle.folder import MANIFEST, MODEL, MULTITASK_FILES, ONE_TASK_FILES, TOKENIZER, WEIGHTS
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import PackError, reason
from ptexport.runtime.packs.tokenizer_part import PackTokenizer

FORMAT = "2"
_KEYS = {"format", "record", "digest"}


class PackRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of a pack beside the arrays.

    Attributes:
        manifest: manifest of the exported bundle; an installed bundle has the same files.
        frame_sha256: hash of the graph without the task arrays.
        tokenizer: the tasks' parts of its tokenizer.json.
        texts: the other text files that are hashed, by name.
        metrics: metrics of each task's training as plain data, for the model card; None: it was trained elsewhere.
    """

    manifest: Manifest
    frame_sha256: str
    tokenizer: PackTokenizer
    texts: dict[str, str]
    metrics: list[dict[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One or several tasks without their backbone.

    Attributes:
        record: content beside the arrays.
        arrays: task arrays by the graph's input name, float32.
        digest: sha256 over both.
    """

    record: PackRecord
    arrays: dict[str, NDArray[np.float32]]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "Pack":
        """Read a file.

        Raises:
            PackError: the file is not a pack, is truncated, was changed, or has another format.
        """
        metadata, arrays = _load(path)
        if set(metadata) != _KEYS:
            raise PackError(f"{path}: a safetensors file, but not a pack; make one with 'ptexport pack'")
        if metadata["format"] != FORMAT:
            got = metadata["format"]
            raise PackError(
                f"{path}: got format {got[:40]!r}, need {FORMAT!r}; pack again with this version of ptexport"
            )
        if metadata["digest"] != _digest(metadata["record"], arrays):
            raise PackError(f"{path}: its digest does not match its content; it was changed, copy the pack again")
        try:
            record = msgspec.json.decode(metadata["record"], type=PackRecord)
        except (msgspec.DecodeError, RecursionError) as e:
            raise PackError(f"{path}: {reason(e)[:200]}; pack again with this version of ptexport") from e
        if any(array.dtype != np.float32 for array in arrays.values()):
            raise PackError(f"{path}: has arrays that are not float32; pack again with this version of ptexport")
        tasks = record.manifest.tasks
        files = set(MULTITASK_FILES if len(tasks) > 1 else ONE_TASK_FILES)
        if set(record.manifest.files) != files or set(record.texts) != files - {MODEL, WEIGHTS, TOKENIZER}:
            raise PackError(f"{path}: lists other files than a bundle's; pack again with this version of ptexport")
        if len(record.metrics) != len(tasks):
            raise PackError(
                f"{path}: has metrics of {len(record.metrics)} tasks, need {len(tasks)}; pack again with this version"
            )
        return cls(record=record, arrays=arrays, digest=metadata["digest"])

    @classmethod
    def of(cls, folder: Path, vocab: int, metrics: Sequence[dict[str, Any] | None]) -> "Pack":
        """Take what is new for the tasks out of a bundle that was just exported.

        Args:
            folder: of the bundle.
            vocab: first id past the backbone's embedding table.
            metrics: of each task's training, as plain data.
        """
        file = OnnxFile.parse((folder / MODEL).read_bytes(), str(folder / MODEL))
        manifest = read_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        texts = [name for name in manifest.files if name not in (MODEL, WEIGHTS, TOKENIZER)]
        record = PackRecord(
            manifest=manifest,
            frame_sha256=file.frame_sha256,
            tokenizer=PackTokenizer.of((folder / TOKENIZER).read_text(encoding="utf-8"), vocab),
            texts={name: (folder / name).read_text(encoding="utf-8") for name in texts},
            metrics=list(metrics),
        )
        return cls.of_parts(record, file.arrays)

    @classmethod
    def of_parts(cls, record: PackRecord, arrays: dict[str, NDArray[np.float32]]) -> "Pack":
        """Hash a record and arrays."""
        return cls(record=record, arrays=arrays, digest=_digest(_json(record), arrays))

    def to_bytes(self) -> bytes:
        """Encode for a file."""
        return save(self.arrays, {"format": FORMAT, "record": _json(self.record), "digest": self.digest})


def _load(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Read metadata and arrays of a safetensors file."""
    if not path.is_file():
        raise PackError(f"{path}: missing, or not a file; need one made by 'ptexport pack'")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return file.metadata() or {}, arrays
    except (SafetensorError, OSError) as e:
        raise PackError(
            f"{path}: not a complete pack ({reason(e)}); copy it again, or make it with 'ptexport pack'"
        ) from e


def _json(record: PackRecord) -> str:
    return msgspec.json.encode(record).decode()


def _digest(record: str, arrays: dict[str, NDArray[Any]]) -> str:
    sha256 = hashlib.sha256(record.encode())
    for name, array in sorted(arrays.items()):
        sha256.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()
