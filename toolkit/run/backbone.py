"""A run -> the backbone its arrays are for: the one it was trained on, or the one it trained."""

from collections.abc import Callable
from pathlib import Path

from ptexport.runtime.errors import RunError
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.run.config import RunConfig

BACKBONE = "backbone"  # only in a run that trained it


def load_backbone_of(config: RunConfig, folder: Path, *, stage: Callable[[str], None] = lambda name: None) -> Backbone:
    """Load the backbone that a run's arrays are for: the one it was trained on, or the one it trained.

    Args:
        config: the run's.
        folder: the run's.
        stage: told what begins, if it takes long.

    Raises:
        ModelError: it cannot be loaded.
        RunError: its weights or configuration are others by now.
    """
    head: Head = "linear" if config.label_words is None else "words"
    if config.trained_backbone is not None:
        backbone = load_trained_backbone(folder / BACKBONE, config.backbone.name, config.backbone.licence, head)
    else:
        backbone = load_backbone(find_checkpoint(config.model, revision=config.revision, stage=stage), head)
    facts, expected = backbone.facts, config.facts
    if (facts.fingerprint, facts.config_sha256) != (expected.fingerprint, expected.config_sha256):
        raise RunError(
            f"model {config.model}: has other weights, or another configuration, than the run was trained on; "
            "train again"
        )
    return backbone


def load_trained_backbone(folder: Path, name: str, licence: str | None, head: Head) -> Backbone:
    """Load what `TrainableBackbone.write` wrote.

    Args:
        folder: in Hugging Face's layout.
        name: of the model it was before.
        licence: likewise.
        head: what will be read.

    Raises:
        ModelError: it cannot be loaded.
    """
    return load_backbone(Checkpoint(path=folder, name=name, licence=licence), head)
