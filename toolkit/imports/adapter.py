"""The files of an adapter -> PEFT's model: the adapter on its base model."""

import warnings
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ptexport.runtime.errors import CheckpointError, reason
from ptexport.toolkit.imports.adapter_files import ADAPTER_CONFIG, WEIGHTS, AdapterFiles
from ptexport.toolkit.imports.conversion import load_for
from ptexport.toolkit.models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter.

    Attributes:
        files: its files.
        config: PEFT's configuration object.
        tensors: its weights, by their name in the file.
    """

    files: AdapterFiles
    config: PeftConfig
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, files: AdapterFiles) -> "Adapter":
        """Read an adapter.

        Raises:
            CheckpointError: PEFT cannot read its configuration.
        """
        try:
            config = PeftConfig.from_pretrained(str(files.folder))
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"{files.folder / ADAPTER_CONFIG}: PEFT cannot read it ({reason(e)}); save the adapter again"
            ) from e
        return cls(files=files, config=config, tensors=load_file(files.folder / WEIGHTS))

    def load(self, checkpoint: Checkpoint) -> PeftModel:
        """Load the model and the adapter with PEFT, in fp32 on the CPU.

        Raises:
            CheckpointError: the adapter is for another model, or the checkpoint lacks weights that it needs.
        """
        model = self._task_model(checkpoint)
        where = f"{self.files.folder}: not for model {checkpoint.name}"
        try:
            with warnings.catch_warnings():
                # PEFT 0.21 uses a name that Transformers 5.23 deprecates.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                warnings.filterwarnings("ignore", "Found missing adapter keys")  # checked below
                adapted = PeftModel.from_pretrained(
                    model, str(self.files.folder), config=self.config, torch_device="cpu"
                )
            # Otherwise PEFT queries the hub to decide whether embeddings belong to the adapter.
            loaded = get_peft_model_state_dict(adapted.eval(), save_embedding_layers=False)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
            why = (str(e).strip() or type(e).__name__).splitlines()[-1].strip()  # the first line names a class of PEFT
            raise CheckpointError(f"{where} ({why}); give its base model with --model") from e
        # PEFT also loads the weights of an adapted output layer or embedding table.
        different = sorted((set(loaded) ^ set(self.tensors)) - set(adapted.state_dict()))
        if different:
            place = "the adapter file" if different[0] in self.tensors else "the adapted model"
            raise CheckpointError(f"{where}: {different[0]} is only in {place}; give its base model with --model")
        return adapted

    def head(self) -> tuple[Tensor, Tensor]:
        """Return weights and biases of the classification layer, float [c, h] and [c]."""
        found = {part: self.tensors[name].float() for part, name in self.files.head.items()}
        return found["weight"], found.get("bias", torch.zeros(len(found["weight"])))

    def _task_model(self, checkpoint: Checkpoint) -> PreTrainedModel:
        options = {}
        loader = AutoModelForCausalLM
        if self.files.task == "SEQ_CLS":
            if self.files.kind != "LORA":  # which is merged into the whole classifier
                _check_head(checkpoint)
            options["num_labels"] = self.files.n_labels
            loader = AutoModelForSequenceClassification
        model, lacking = load_for(loader, checkpoint, self.files.task, **options)
        missing = sorted(lacking - {self._own_name(name) for name in self.tensors})
        if missing:
            raise CheckpointError(
                f"model {checkpoint.name}: the checkpoint lacks {', '.join(missing)}, which {self.files.folder} does "
                "not hold either, so logits would be random; give the base model of the adapter with --model"
            )
        return model

    def _own_name(self, name: str) -> str:
        """Return the name of a tensor in the model without the adapter."""
        return name.removeprefix("base_model.model." if self.files.kind == "LORA" else "base_model.")


def _check_head(checkpoint: Checkpoint) -> None:
    """Check that the classification head is one linear layer on the last token or BERT's pooler.

    Raises:
        CheckpointError: the head has other layers (the message names them).
    """
    where = f"model {checkpoint.name}"
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{where}: Transformers has no classifier for it ({reason(e)}); not supported") from e
    heads = [child for child in model.children() if child is not model.base_model and list(child.parameters())]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        of_base = {id(parameter) for parameter in model.base_model.parameters()}
        names = [name for name, parameter in model.named_parameters() if id(parameter) not in of_base]
        layers = dict.fromkeys(name.rpartition(".")[0] for name in names)
        raise CheckpointError(
            f"{where}: the classification head of {config.model_type} has the layers {', '.join(layers)}, need one "
            "linear layer; not supported, train label words or a linear head with ptexport"
        )
