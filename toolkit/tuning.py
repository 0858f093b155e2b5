"""A frozen backbone -> one that is trained, wholly or by LoRA -> an ordinary checkpoint again."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from peft import LoraConfig, LoraModel
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from ptexport.runtime.errors import OutputError, RunError, reason
from ptexport.toolkit.backbone import Backbone, load_backbone
from ptexport.toolkit.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.methods import Head, Tuned
from ptexport.toolkit.run import BACKBONE, RunConfig

_LORA_RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """A backbone, and what of it is trained.

    Attributes:
        backbone: its model is trained in place; without dropout, so that a seed decides everything.
        parameters: those that are trained, by name; none of a frozen one.
        adapters: the model with its LoRA updates, which are not in its weights yet.
    """

    backbone: Backbone
    parameters: dict[str, nn.Parameter]
    adapters: LoraModel | None = None

    @classmethod
    def of(cls, backbone: Backbone, tuned: Tuned, *, lora_rank: int | None) -> "Tunable":
        """Copy a backbone to be trained; a frozen one is used as it is.

        Args:
            backbone: frozen.
            tuned: what of it is trained. LoRA (Hu et al. 2021, arXiv:2106.09685): all linear layers but the last;
                alpha is the rank, so that updates are not scaled.
            lora_rank: rank of its updates, at least 1; None: 8.
        """
        if tuned == "nothing":
            return cls(backbone=backbone, parameters={})
        model = copy.deepcopy(backbone.model)
        adapters = None
        if tuned == "lora":
            rank = lora_rank or _LORA_RANK
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
            with warnings.catch_warnings():  # PEFT sets it itself for GPT-2's transposed layers, and says so
                warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
                adapters = LoraModel(model, config, "default")
        else:
            model.requires_grad_(True)
        model.eval()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return cls(backbone=replace(backbone, model=model), parameters=trained, adapters=adapters)

    def write(self, folder: Path, head: Head) -> Backbone:
        """Write the trained model in Hugging Face's layout, LoRA merged in, and load it as anybody would.

        Raises:
            OutputError: the disk refuses.
        """
        model = self.backbone.model
        if self.adapters is not None:
            self.adapters.merge_and_unload()  # in place
        tokens = {f"{role}_token": token for role, token in self.backbone.facts.tokens.items()}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(self.backbone.tokenizer_json), **tokens)
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as e:  # its name for what the disk says
            raise OutputError(f"{folder}: cannot be written ({reason(e)}); free some space") from e
        return load_tuned(folder, self.backbone.facts.name, self.backbone.facts.licence, head)


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
    if config.tuned is not None:
        backbone = load_tuned(folder / BACKBONE, config.backbone.name, config.backbone.licence, head)
    else:
        backbone = load_backbone(find_checkpoint(config.model, revision=config.revision, stage=stage), head)
    facts, expected = backbone.facts, config.facts
    if (facts.fingerprint, facts.config_sha256) != (expected.fingerprint, expected.config_sha256):
        raise RunError(
            f"model {config.model}: has other weights, or another configuration, than the run was trained on; "
            "train again"
        )
    return backbone


def load_tuned(folder: Path, name: str, licence: str | None, head: Head) -> Backbone:
    """Load what `Tunable.write` wrote.

    Args:
        folder: in Hugging Face's layout.
        name: of the model it was before.
        licence: likewise.
        head: what will be read.

    Raises:
        ModelError: it cannot be loaded.
    """
    return load_backbone(Checkpoint(path=folder, name=name, licence=licence), head)
