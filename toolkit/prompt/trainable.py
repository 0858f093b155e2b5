"""A frozen backbone -> a trainable one (all weights, or LoRA) -> an ordinary checkpoint."""

import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from peft import LoraConfig, LoraModel
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from ptexport.runtime.errors import OutputError, reason
from ptexport.toolkit.methods import BackboneTraining, Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.run.backbone import load_trained_backbone

_LORA_RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableBackbone:
    """A backbone and its trained parameters.

    Attributes:
        backbone: the backbone; its model is trained in place, without dropout, so that the seed determines the result.
        parameters: the trained parameters, by name; empty for a frozen backbone.
        adapters: the model with LoRA updates that are not merged yet; None without LoRA.
    """

    backbone: Backbone
    parameters: dict[str, nn.Parameter]
    adapters: LoraModel | None = None

    @classmethod
    def of(cls, backbone: Backbone, training: BackboneTraining, *, lora_rank: int | None) -> "TrainableBackbone":
        """Copy a backbone for training; a backbone that stays frozen is not copied.

        Args:
            backbone: a frozen backbone.
            training: which weights are trained. LoRA (Hu et al. 2021, arXiv:2106.09685) updates all linear layers but
                the last; alpha equals the rank, so that updates are not scaled.
            lora_rank: rank of the LoRA updates, at least 1; None: 8.
        """
        if training == "nothing":
            return cls(backbone=backbone, parameters={})
        model = copy.deepcopy(backbone.model)
        adapters = None
        if training == "lora":
            rank = lora_rank or _LORA_RANK
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
            with warnings.catch_warnings():  # PEFT sets it for GPT-2's transposed layers and warns
                warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
                adapters = LoraModel(model, config, "default")
        else:
            model.requires_grad_(True)
        model.eval()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return cls(backbone=replace(backbone, model=model), parameters=trained, adapters=adapters)

    def write(self, folder: Path, head: Head) -> Backbone:
        """Write the trained model in Hugging Face's layout, with LoRA merged, and load it from there.

        Raises:
            OutputError: the folder cannot be written.
        """
        model = self.backbone.model
        if self.adapters is not None:
            self.adapters.merge_and_unload()  # in place
        tokens = {f"{role}_token": token for role, token in self.backbone.facts.tokens.items()}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(self.backbone.tokenizer_json), **tokens)
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as e:  # safetensors' name for an OSError
            raise OutputError(f"{folder}: cannot be written ({reason(e)}); free some space") from e
        return load_trained_backbone(folder, self.backbone.facts.name, self.backbone.facts.licence, head)
