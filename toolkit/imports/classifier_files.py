"""The files of a text classifier of Transformers -> its labels; without Transformers and torch.

Classifiers that cannot become a bundle are rejected by name.
"""

from typing import Any

from ptexport.runtime.errors import CheckpointError
from ptexport.toolkit.imports.config import read_object
from ptexport.toolkit.models.checkpoint import Checkpoint
from ptexport.toolkit.run.run import CONFIG

CLASSIFIER = "ForSequenceClassification"


def architectures_of(record: dict[str, Any]) -> list[str]:
    """Return the classes of Transformers that a configuration names."""
    names = record.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def check_classifier(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Check what the files say, and return the names of the labels in the order of the outputs.

    Raises:
        CheckpointError: they are of another kind of model, do not give each text one of several labels, or have no
            weights in safetensors.
    """
    where = f"model {checkpoint.name}"
    record = read_object(checkpoint.path / CONFIG)
    architectures = architectures_of(record)
    if architectures and not any(name.endswith(CLASSIFIER) for name in architectures):
        raise CheckpointError(
            f"{where}: holds a {architectures[0]}, need a …{CLASSIFIER}; train it with ptexport train, or fine-tune a "
            "classifier"
        )
    names, kind = label_names(record, where), record.get("problem_type")
    if len(names) < 2 or kind == "regression":
        raise CheckpointError(f"{where}: is a regression, need a classifier of two or more labels; not supported")
    if kind == "multi_label_classification":
        raise CheckpointError(f"{where}: gives a text several labels ({kind}), need exactly one; not supported")
    if not list(checkpoint.path.glob("*.safetensors")):
        pickled = (checkpoint.path / "pytorch_model.bin").is_file()
        got = "has only pytorch_model.bin, a pickle, which can run code" if pickled else "has no weights in safetensors"
        raise CheckpointError(f"{where}: {got}; load it with Transformers and save it with save_pretrained")
    return names


def label_names(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return the names of the labels as Transformers reads them from `config.json`: two, unless it says otherwise.

    Raises:
        CheckpointError: `id2label` does not number the labels from 0.
    """
    names, n_labels = record.get("id2label"), record.get("num_labels")
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(n_labels if isinstance(n_labels, int) else 2))
    numbers = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    if not numbers or set(numbers) != set(names):
        raise CheckpointError(f"{where}: got id2label {names!r}, need names of 0, 1, …; correct its {CONFIG}")
    return tuple(str(names[number]) for number in numbers)
