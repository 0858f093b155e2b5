"""The run folder: what was trained and how. Reads and writes files; does not load torch.

config.json          RunConfig
metrics.json         Metrics; null if the run was imported
weights.safetensors  trained parameters (`prompt.*`) and the task tensors computed from them (`task.*`), so that export
                     does not need the prompt encoder
tokenizer.json       tokenizer of the backbone
check_rows.jsonl     rows for the parity check
backbone/            the language model in Hugging Face's layout, if it was trained too
resume.safetensors   state of a training that was interrupted
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ptexport.runtime.errors import DataError, RunError, reason
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.models.facts import sha256_text
from ptexport.toolkit.run.config import FORMAT, RunConfig
from ptexport.toolkit.run.metrics import Metrics

CONFIG = "config.json"
METRICS = "metrics.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
CHECK_ROWS = "check_rows.jsonl"
FILES = (CONFIG, METRICS, WEIGHTS, TOKENIZER, CHECK_ROWS)
BACKBONE = "backbone"  # exists only in a run that trained its backbone
RESUME = "resume.safetensors"  # exists only in a run that was interrupted; see training/resume.py
POSSIBLE_FILES = (*FILES, BACKBONE, RESUME)

_TRAINED, _TASK = "prompt.", "task."  # prefixes of the names in WEIGHTS
_FORMAT_1_ARRAYS = {
    "prompt.prefix.states": "prompt.prefix.prefix_kv",
    "baked.prompt_rows": "task.prompt_embeddings",
    "baked.label_rows": "task.label_weights",
    "baked.label_bias": "task.label_bias",
    "baked.leading_states": "task.prefix_kv",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArrays:
    """The task tensors, as float32 arrays.

    Attributes:
        prompt_embeddings: [p, e], embeddings of the ids from `vocab` on; p is at least 1.
        label_weights: [c, h].
        label_bias: [c].
        prefix_kv: [l, 2, 1, k, n, d], keys and values of the prefix or the folded leading tokens; None on a masked
            model without a prefix.
    """

    prompt_embeddings: NDArray[np.float32]
    label_weights: NDArray[np.float32]
    label_bias: NDArray[np.float32]
    prefix_kv: NDArray[np.float32] | None

    @property
    def has_prefix_kv(self) -> bool:
        """Whether the task has keys and values before the row."""
        return self.prefix_kv is not None

    def by_name(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays that are not None, by input name of the graph."""
        named = {
            name: getattr(self, name) for name in ("prompt_embeddings", "label_weights", "label_bias", "prefix_kv")
        }
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished training, or an import.

    Attributes:
        config: what was trained, on what.
        metrics: what the training measured; None for an import.
        trained: the trained parameters, by name.
        arrays: the task tensors computed from them.
        tokenizer_json: tokenizer of the backbone.
        check_rows: rows for the parity check.
    """

    config: RunConfig
    metrics: Metrics | None
    trained: dict[str, NDArray[np.float32]]
    arrays: TaskArrays
    tokenizer_json: str
    check_rows: list[Row]

    @property
    def temperature(self) -> float:
        """Divisor of the logits; `arrays.label_weights` are divided by it already."""
        return 1.0 if self.metrics is None else self.metrics.temperature

    @property
    def shortfall(self) -> str | None:
        """In which respect the training fell short of its options; None: in none. See `Metrics.shortfall`."""
        return None if self.metrics is None else self.metrics.shortfall(self.config.abstain)

    @property
    def versions(self) -> dict[str, str]:
        """Package versions at the time of the training or the import."""
        made = self.metrics or self.config.imported
        assert made is not None, "a run is trained or imported"
        return made.versions

    def write(self, folder: Path) -> None:
        """Write all files into a folder; a trained `BACKBONE` must be there already."""
        (folder / CONFIG).write_bytes(_pretty(self.config))
        (folder / METRICS).write_bytes(_pretty(self.metrics))
        arrays = {f"{_TRAINED}{name}": array for name, array in self.trained.items()}
        arrays |= {f"{_TASK}{name}": array for name, array in self.arrays.by_name().items()}
        (folder / WEIGHTS).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        (folder / TOKENIZER).write_text(self.tokenizer_json, encoding="utf-8")
        lines = (json.dumps(_record(row), ensure_ascii=False) + "\n" for row in self.check_rows)
        (folder / CHECK_ROWS).write_text("".join(lines), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run.

        Raises:
            RunError: a file is missing or invalid.
        """
        _check_files(folder)
        try:
            config = RunConfig.from_json((folder / CONFIG).read_bytes())
            metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=Metrics | None)
            tokenizer_json = (folder / TOKENIZER).read_text(encoding="utf-8")
            named = load((folder / WEIGHTS).read_bytes())
            check_rows = list(read_rows(folder / CHECK_ROWS))
        except OSError as e:
            raise RunError(f"{e.filename}: cannot be read ({e.strerror}); check its permissions") from e
        except (msgspec.DecodeError, SafetensorError, DataError, UnicodeDecodeError) as e:
            raise RunError(f"{folder}: not a run this version can read ({reason(e)}); train again") from e
        if (metrics is None) != (config.imported is not None):
            raise RunError(f"{folder / METRICS}: does not match {CONFIG}; train or import again")
        if config.format != FORMAT:
            raise RunError(f"{folder / CONFIG}: got format {config.format}, need {FORMAT}; train again")
        if sha256_text(tokenizer_json) != config.backbone.tokenizer_sha256:
            raise RunError(f"{folder / TOKENIZER}: not the tokenizer it was trained with; train again")
        arrays = {_FORMAT_1_ARRAYS.get(name, name): array for name, array in named.items()}
        return cls(
            config=config,
            metrics=metrics,
            trained=_starting_with(_TRAINED, arrays),
            arrays=_task_arrays(folder / WEIGHTS, arrays),
            tokenizer_json=tokenizer_json,
            check_rows=check_rows,
        )


def _check_files(folder: Path) -> None:
    for name in FILES:
        if not (folder / name).is_file():
            best = f"; of a sweep, {folder / 'best'}" if (folder / "best").is_dir() else ""
            raise RunError(f"{folder / name}: missing; need a run folder made by 'ptexport train'{best}")


def _task_arrays(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> TaskArrays:
    task = _starting_with(_TASK, arrays)
    if set(task) - {"prefix_kv"} != {"prompt_embeddings", "label_weights", "label_bias"}:
        raise RunError(f"{path}: holds {sorted(arrays)}, need {_TASK}prompt_embeddings and others; train again")
    return TaskArrays(prefix_kv=task.pop("prefix_kv", None), **task)


def _starting_with(prefix: str, arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _pretty(value: msgspec.Struct | None) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _record(row: Row) -> dict[str, object]:
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices, "label": row.label}
    return {name: value for name, value in columns.items() if value is not None}
