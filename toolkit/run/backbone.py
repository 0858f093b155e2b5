"""A run -> its backbone: the original one, or the one that the run trained."""

from collections.abc import Callable
from pathlib import Path

from ptexport.runtime.errors import RunError
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.run.run import BACKBONE


def load_backbone_of(config: RunConfig, folder: Path, *, stage: Callable[[str], None] = lambda name: None) -> Backbone:
    """Load the backbone that the arrays of a run belong to: the original one, or the one that the run trained.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        stage: called with the name of a stage that takes long, such as a download.

    Raises:
        ModelError: the backbone cannot be loaded.
        RunError: its weights or configuration changed since the training.
    """
    head: Head = "linear" if config.label_words is None else "words"
    if config.pooling in ("pooled", "pooled-mean"):
        head = "pooled"
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
    """Load a backbone that `TrainableBackbone.write` wrote.

    Args:
        folder: a folder in Hugging Face's layout.
        name: name of the original model.
        licence: licence of the original model.
        head: the head to load the model for.

    Raises:
        ModelError: the backbone cannot be loaded.
    """
    return load_backbone(Checkpoint(path=folder, name=name, licence=licence), head)
