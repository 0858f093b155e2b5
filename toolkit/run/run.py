"""The run folder: what was trained and how; knows files, nothing of torch.

config.json          RunConfig
metrics.json         Metrics, or null if it was trained elsewhere
weights.safetensors  trained parameters (`prompt.*`) and the task tensors computed from them (`task.*`), so that export
                     needs no encoder
tokenizer.json       the backbone's own
check_rows.jsonl     rows for parity
backbone/            the language model in Hugging Face's layout, if it was trained too
resume.safetensors   of a training that was stopped: where it was
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
from ptexport.runtime.rows import Row, read_rows
from ptexport.toolkit.models.facts import sha256_text
from ptexport.toolkit.run.config import FORMAT, RunConfig
from ptexport.toolkit.run.metrics import Metrics

CONFIG = "config.json"
METRICS = "metrics.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
CHECK_ROWS = "check_rows.jsonl"
FILES = (CONFIG, METRICS, WEIGHTS, TOKENIZER, CHECK_ROWS)
RESUME = "resume.safetensors"  # only in a run that was stopped; see resume.py

_TRAINED, _TASK = "prompt.", "task."  # what names in WEIGHTS begin with
_FORMAT_1_ARRAYS = {
    "prompt.prefix.states": "prompt.prefix.prefix_kv",
    "baked.prompt_rows": "task.prompt_embeddings",
    "baked.label_rows": "task.label_weights",
    "baked.label_bias": "task.label_bias",
    "baked.leading_states": "task.prefix_kv",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArrays:
    """What a task brings to the graph, all float32.

    Attributes:
        prompt_embeddings: [p, e], rows of ids from `vocab` on; p is at least 1.
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
        """Whether keys and values stand before the rows."""
        return self.prefix_kv is not None

    def by_name(self) -> dict[str, NDArray[np.float32]]:
        """The arrays there are, by the graph's input name."""
        named = {
            name: getattr(self, name) for name in ("prompt_embeddings", "label_weights", "label_bias", "prefix_kv")
        }
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished training, here or elsewhere.

    Attributes:
        config: what was trained, on what.
        metrics: what came out; None: it was trained elsewhere, so nobody measured it here.
        trained: the trained parameters, by name.
        arrays: what they come to.
        tokenizer_json: the backbone's own tokenizer.
        check_rows: rows for parity.
    """

    config: RunConfig
    metrics: Metrics | None
    trained: dict[str, NDArray[np.float32]]
    arrays: TaskArrays
    tokenizer_json: str
    check_rows: list[Row]

    @property
    def temperature(self) -> float:
        """What logits are divided by; `arrays.label_weights` are divided by it."""
        return 1.0 if self.metrics is None else self.metrics.temperature

    @property
    def versions(self) -> dict[str, str]:
        """Of what it was trained, or imported, with."""
        made = self.metrics or self.config.imported
        assert made is not None, "a run is trained or imported"
        return made.versions

    def write(self, folder: Path) -> None:
        """Write all files into a folder, which holds `BACKBONE` already if that was trained."""
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
            RunError: a file is missing, or is not what it should be.
        """
        for name in FILES:
            if not (folder / name).is_file():
                best = f"; of a sweep, {folder / 'best'}" if (folder / "best").is_dir() else ""
                raise RunError(f"{folder / name}: missing; need a run folder made by 'ptexport train'{best}")
        try:
            config = RunConfig.from_json((folder / CONFIG).read_bytes())
            metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=Metrics | None)
            tokenizer_json = (folder / TOKENIZER).read_text(encoding="utf-8")
            named = load((folder / WEIGHTS).read_bytes())
            arrays = {_FORMAT_1_ARRAYS.get(name, name): array for name, array in named.items()}
            check_rows = list(read_rows(folder / CHECK_ROWS))
        except OSError as e:
            raise RunError(f"{e.filename}: cannot be read ({e.strerror}); check its permissions") from e
        except (msgspec.DecodeError, SafetensorError, DataError, UnicodeDecodeError) as e:
            raise RunError(f"{folder}: not a run this version can read ({reason(e)}); train again") from e
        if (metrics is None) != (config.imported is not None):
            raise RunError(f"{folder / METRICS}: does not go with {CONFIG}; train or import again")
        if config.format != FORMAT:
            raise RunError(f"{folder / CONFIG}: got format {config.format}, need {FORMAT}; train again")
        if sha256_text(tokenizer_json) != config.backbone.tokenizer_sha256:
            raise RunError(f"{folder / TOKENIZER}: not the tokenizer it was trained with; train again")
        task = _starting_with(_TASK, arrays)
        if set(task) - {"prefix_kv"} != {"prompt_embeddings", "label_weights", "label_bias"}:
            raise RunError(
                f"{folder / WEIGHTS}: holds {sorted(arrays)}, need {_TASK}prompt_embeddings and others; train again"
            )
        return cls(
            config=config,
            metrics=metrics,
            trained=_starting_with(_TRAINED, arrays),
            arrays=TaskArrays(prefix_kv=task.pop("prefix_kv", None), **task),
            tokenizer_json=tokenizer_json,
            check_rows=check_rows,
        )


def _starting_with(prefix: str, arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _pretty(value: msgspec.Struct | None) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _record(row: Row) -> dict[str, object]:
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices, "label": row.label}
    return {name: value for name, value in columns.items() if value is not None}
