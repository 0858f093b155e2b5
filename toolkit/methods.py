"""The training methods: what each method trains, with which head, prompt encoder and learning rates.

A method is a combination of five choices: the kind of virtual token, the trained part of the language model, the head,
the prompt encoder and the learning rates.
"""

from dataclasses import dataclass
from typing import Literal

from ptexport.runtime.errors import TrainError

MethodName = Literal[
    "p-tuning", "p-tuning-v2", "prefix", "prompt-tuning", "lora", "fine-tune", "pet", "manual", "search"
]
VirtualToken = Literal["embedding", "prefix_kv", "word"]
"""Kind of virtual token: an embedding past the table, past keys and values of every layer, or a word to search for."""
BackboneTraining = Literal["nothing", "lora", "all"]
"""Trained part of the language model."""
Head = Literal["words", "linear", "pooled"]
"""The head: label words (rows of the language-model head), a linear layer trained with the prompt, or a linear layer
after the other layers of a classifier's own head (imports only)."""
EncoderKind = Literal["lstm", "mlp", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A training method.

    Attributes:
        virtual_token: kind of virtual token in the template; None: the template has none.
        leading: whether all virtual tokens must come before the rest of the template.
        backbone_training: trained part of the language model.
        heads: possible heads, the default first.
        encoders: possible prompt encoders, the default first.
    """

    virtual_token: VirtualToken | None
    leading: bool = False
    backbone_training: BackboneTraining = "nothing"
    heads: tuple[Head, ...] = ("words", "linear")
    encoders: tuple[EncoderKind, ...] = ("none",)

    @property
    def takes_steps(self) -> bool:
        """Whether the method takes optimizer steps."""
        return self.virtual_token in ("embedding", "prefix_kv") or self.backbone_training != "nothing"


METHODS: dict[MethodName, Method] = {
    # Liu et al. 2021, arXiv:2103.10385
    "p-tuning": Method(virtual_token="embedding", encoders=("lstm", "mlp", "none")),
    # Liu et al. 2022, arXiv:2110.07602: keys and values trained directly ("none"), or reparameterised
    "p-tuning-v2": Method(virtual_token="prefix_kv", leading=True, encoders=("none", "mlp")),
    # Li and Liang 2021, arXiv:2101.00190, section 4.3: reparameterised, since direct training was unstable
    "prefix": Method(virtual_token="prefix_kv", leading=True, encoders=("mlp",)),
    # Lester et al. 2021, arXiv:2104.08691
    "prompt-tuning": Method(virtual_token="embedding", leading=True),
    # Hu et al. 2021, arXiv:2106.09685
    "lora": Method(virtual_token=None, backbone_training="lora"),
    "fine-tune": Method(virtual_token=None, backbone_training="all", heads=("linear",)),
    # Schick and Schütze 2021, arXiv:2001.07676, without its ensembles and unlabelled data
    "pet": Method(virtual_token=None, backbone_training="all", heads=("words",)),
    "manual": Method(virtual_token=None, heads=("words",)),
    # Shin et al. 2020, arXiv:2010.15980
    "search": Method(virtual_token="word", heads=("words",)),
}

LR: dict[tuple[VirtualToken, EncoderKind], float] = {
    ("embedding", "lstm"): 5e-3,
    ("embedding", "mlp"): 1e-3,
    ("embedding", "none"): 1e-2,
    ("prefix_kv", "none"): 1e-2,
    ("prefix_kv", "mlp"): 1e-3,
}
"""Default learning rates with a frozen backbone; the 1e-5 of the papers is for training the language model too."""
HEAD_LR = 1e-3
"""Default learning rate of a linear head without virtual tokens."""
BACKBONE_LR: dict[BackboneTraining, float] = {"lora": 1e-3, "all": 2e-5}
"""Default learning rates of the language model."""


def find_method(name: MethodName, *, train_backbone: bool) -> Method:
    """Find a method by name.

    Args:
        name: name of the method.
        train_backbone: train the language model together with the virtual tokens.

    Raises:
        TrainError: the method does not support `train_backbone`.
    """
    method = METHODS[name]
    if not train_backbone:
        return method
    if name != "p-tuning":
        raise TrainError(f"tune-backbone: is for p-tuning, got {name}; leave it out")
    return Method(virtual_token=method.virtual_token, backbone_training="all", encoders=method.encoders)


def choose_encoder(name: MethodName, method: Method, encoder: EncoderKind | None) -> EncoderKind:
    """Choose a prompt encoder: the given one, or the default of the method.

    Raises:
        TrainError: the method does not support the encoder.
    """
    if encoder is None:
        return method.encoders[0]
    if encoder not in method.encoders or method.virtual_token is None:
        known = f"has {' or '.join(method.encoders)}" if method.virtual_token else "does not use prompt encoders"
        raise TrainError(f"encoder {encoder}: {name} {known}; leave --encoder out")
    return encoder


def choose_rates(
    name: MethodName,
    method: Method,
    encoder: EncoderKind,
    head: Head,
    *,
    lr: float | None,
    backbone_lr: float | None,
) -> tuple[float | None, float | None]:
    """Choose the peak learning rates.

    Args:
        name: name of the method.
        method: the method.
        encoder: the prompt encoder.
        head: the head.
        lr: learning rate of virtual tokens and a linear head, if given.
        backbone_lr: learning rate of the language model, if given.

    Returns:
        The learning rate of virtual tokens and a linear head, and that of the language model; None if not trained.

    Raises:
        TrainError: a rate is given for a part that is not trained.
    """
    is_search = method.virtual_token == "word"
    learns = (method.virtual_token is not None and not is_search) or head == "linear"
    if lr is not None and not learns:
        advice = "give --backbone-lr" if method.backbone_training != "nothing" else "leave it out"
        raise TrainError(f"lr {lr}: {name} trains no virtual tokens and no linear head; {advice}")
    if backbone_lr is not None and method.backbone_training == "nothing":
        raise TrainError(f"backbone-lr {backbone_lr}: {name} does not train the language model; leave it out")
    default = HEAD_LR if method.virtual_token is None else LR.get((method.virtual_token, encoder))
    return (lr or default) if learns else None, backbone_lr or BACKBONE_LR.get(method.backbone_training)
