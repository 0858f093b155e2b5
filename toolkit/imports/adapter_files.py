"""A folder that PEFT wrote -> what its files say; without PEFT and torch.

Adapters that cannot become a bundle are rejected by name.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ptexport.runtime.errors import CheckpointError, reason
from ptexport.toolkit.imports.config import read_object
from ptexport.toolkit.methods import MethodName

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
PROMPT = "prompt_embeddings"
"""The tensor of virtual tokens: embeddings [n, e], or keys and values [n, 2 * l * k * d]."""

# The first applies to some rows only, the second imports any module by name, the third shares weights between layers.
_REFUSED_SETTINGS = ("alora_invocation_tokens", "megatron_config", "layer_replication")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """The files of an adapter.

    Attributes:
        folder: its folder.
        kind: PEFT's name of the method, one of METHODS.
        task: PEFT's name of the task, one of TASKS.
        base: the base model that it names; None: none.
        revision: revision of the base model on the hub.
        shapes: shapes of its weights, by their name in the file.
    """

    folder: Path
    kind: str
    task: str
    base: str | None
    revision: str | None
    shapes: dict[str, list[int]]

    @classmethod
    def read(cls, folder: Path) -> "AdapterFiles":
        """Read the configuration, and the names and shapes of the weights.

        Raises:
            CheckpointError: the folder holds no adapter, a pickled one, one whose kind or task is not supported, or
                weights that are not those of such an adapter.
        """
        path = folder / ADAPTER_CONFIG
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: not a PEFT adapter, has no {ADAPTER_CONFIG}; give the folder that save_pretrained wrote"
            )
        record = read_object(path)
        kind, task = str(record.get("peft_type")), str(record.get("task_type"))
        if kind not in METHODS:
            raise CheckpointError(f"{folder}: got peft_type {kind}, need {', '.join(METHODS)}; not supported")
        if task not in TASKS:
            raise CheckpointError(f"{folder}: got task_type {task}, need {' or '.join(TASKS)}; not supported")
        for name in _REFUSED_SETTINGS:
            if record.get(name):
                raise CheckpointError(f"{path}: sets {name}, which cannot be merged; not supported")
        files = cls(
            folder=folder,
            kind=kind,
            task=task,
            base=str(record.get("base_model_name_or_path") or "") or None,
            revision=record.get("revision"),
            shapes=_read_shapes(folder),
        )
        files._check_tensors()
        return files

    @property
    def head(self) -> dict[str, str]:
        """Names of the tensors of the classification layer, the last one, by "weight" and "bias"."""
        return {name.split(".")[-1]: name for name in sorted(self.shapes) if _is_of_head(name)}

    @property
    def n_labels(self) -> int:
        """Number of outputs of the classification layer; only for SEQ_CLS."""
        return self.shapes[self.head["weight"]][0]

    def _check_tensors(self) -> None:
        """Raise CheckpointError if tensors are missing, or there are others, which PEFT would load too."""
        where, of_head = self.folder / WEIGHTS, self.task == "SEQ_CLS"
        others = [name for name in self.shapes if name != PROMPT and not (of_head and _is_of_head(name))]
        if self.kind != "LORA" and (PROMPT not in self.shapes or others):
            got = f"holds {others[0]} too" if others else f"holds no {PROMPT}"
            raise CheckpointError(f"{where}: {got}; need only virtual tokens and a classification layer")
        if not of_head:
            return
        if len(self.shapes.get(self.head.get("weight", ""), [])) != 2:
            raise CheckpointError(f"{where}: has no classification layer; train it with the adapter")
        if self.n_labels < 2:
            raise CheckpointError(
                f"{self.folder}: has one output, a regression; need a classifier of two or more labels"
            )


def _read_shapes(folder: Path) -> dict[str, list[int]]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "has only adapter_model.bin, a pickle, which can run code" if pickled else f"has no {WEIGHTS}"
        raise CheckpointError(f"{folder}: {why}; load it with PEFT and save it with safe_serialization=True")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: cannot be read ({reason(e)}); save the adapter again") from e


def _is_of_head(name: str) -> bool:
    """Return whether a tensor belongs to the classification head, by the names that PEFT uses."""
    return name.removeprefix("base_model.").removeprefix("model.").startswith(("score.", "classifier."))
