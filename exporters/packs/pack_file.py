"""What is new for a task <-> one .ptpack file; without torch, Transformers or onnx.

A pack is a safetensors file: the task's arrays, and in its metadata `format`, `record` (a PackRecord as JSON) and
`digest`. It is made of a bundle that was proved, and lacks what all bundles of its backbone have alike: weights, graph
and vocabulary.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ptexport.runtime.bundle.folder import CONFIG, MANIFEST, MODEL, ONE_TASK_FILES, TOKENIZER, TOKENIZER_CONFIG
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import PackError, reason
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.template.compile import add_to_vocab

FORMAT = "1"
TEXTS = (TOKENIZER_CONFIG, CONFIG)
_KEYS = {"format", "record", "digest"}


class TaskTokenizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task's tokenizer.json has of its own.

    Attributes:
        tokens: the ids past the backbone's embedding table, by name.
        normalizer: as in the file.
        truncation: as in the file.
        post_processor: as in the file.
    """

    tokens: dict[str, int]
    normalizer: dict[str, Any]
    truncation: dict[str, Any]
    post_processor: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "TaskTokenizer":
        """Read it off a bundle."""
        tokenizer_json, vocab = _tokenizer_of(folder)
        spec = json.loads(tokenizer_json)
        entries = spec["model"]["vocab"]
        ids = entries if isinstance(entries, dict) else {name: id_ for id_, (name, _) in enumerate(entries)}
        return cls(
            tokens={name: id_ for name, id_ in ids.items() if id_ >= vocab},
            normalizer=spec["normalizer"],
            truncation=spec["truncation"],
            post_processor=spec["post_processor"],
        )

    def put_into(self, folder: Path) -> str:
        """Write a bundle's tokenizer.json with it in the place of the bundle's own."""
        tokenizer_json, vocab = _tokenizer_of(folder)
        spec = json.loads(tokenizer_json)
        entries = spec["model"]["vocab"]
        if isinstance(entries, dict):
            spec["model"]["vocab"] = {name: id_ for name, id_ in entries.items() if id_ < vocab}
        else:  # a list by id, which may end with fillers up to the other task's tokens
            del entries[vocab:]
            while entries and entries[-1][0] == f"[unused {len(entries) - 1}]":
                entries.pop()
        add_to_vocab(spec["model"], self.tokens)
        own = {"normalizer": self.normalizer, "truncation": self.truncation, "post_processor": self.post_processor}
        return json.dumps(spec | own, ensure_ascii=False)


def _tokenizer_of(folder: Path) -> tuple[str, int]:
    """Read a bundle's tokenizer.json, and how many rows the backbone's embedding table has."""
    config = json.loads((folder / CONFIG).read_bytes())
    return (folder / TOKENIZER).read_text(encoding="utf-8"), config["vocab_size"]


class PackRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a pack says.

    Attributes:
        manifest: of the bundle it was made of: what is installed has the same files.
        frame_sha256: of the graph without the arrays.
        tokenizer: what its tokenizer has of its own.
        texts: whole files, by name.
        metrics: of the training, for the model card; None: it was trained elsewhere.
    """

    manifest: Manifest
    frame_sha256: str
    tokenizer: TaskTokenizer
    texts: dict[str, str]
    metrics: Metrics | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A task without its backbone.

    Attributes:
        record: what it says.
        arrays: by the graph's input name, float32.
        digest: sha256 over both.
    """

    record: PackRecord
    arrays: dict[str, NDArray[np.float32]]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "Pack":
        """Read a file.

        Raises:
            PackError: it is no pack, cut short, altered, or of another format.
        """
        if not path.is_file():
            raise PackError(f"{path}: missing, or no file; need one made by 'ptexport pack'")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as e:
            raise PackError(f"{path}: no whole pack ({reason(e)}); copy it again, or make it by 'ptexport pack'") from e
        if set(metadata) != _KEYS:
            raise PackError(f"{path}: a safetensors file, but no pack; make one by 'ptexport pack'")
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
            raise PackError(f"{path}: holds arrays that are not float32; pack again with this version of ptexport")
        if set(record.texts) != set(TEXTS) or set(record.manifest.files) != set(ONE_TASK_FILES):
            raise PackError(f"{path}: lists other files than a bundle's; pack again with this version of ptexport")
        return cls(record=record, arrays=arrays, digest=metadata["digest"])

    @classmethod
    def of(cls, folder: Path, metrics: Metrics | None) -> "Pack":
        """Take off a bundle that was exported just now what is new for its task."""
        file = OnnxFile.parse((folder / MODEL).read_bytes(), str(folder / MODEL))
        record = PackRecord(
            manifest=read_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST)),
            frame_sha256=file.frame_sha256,
            tokenizer=TaskTokenizer.of(folder),
            texts={name: (folder / name).read_text(encoding="utf-8") for name in TEXTS},
            metrics=metrics,
        )
        return cls.of_parts(record, file.arrays)

    @classmethod
    def of_parts(cls, record: PackRecord, arrays: dict[str, NDArray[np.float32]]) -> "Pack":
        """Hash a record and arrays."""
        return cls(record=record, arrays=arrays, digest=_digest(_json(record), arrays))

    def to_bytes(self) -> bytes:
        """Encode for a file."""
        return save(self.arrays, {"format": FORMAT, "record": _json(self.record), "digest": self.digest})


def _json(record: PackRecord) -> str:
    return msgspec.json.encode(record).decode()


def _digest(record: str, arrays: dict[str, NDArray[Any]]) -> str:
    sha256 = hashlib.sha256(record.encode())
    for name, array in sorted(arrays.items()):
        sha256.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()
