"""The methods: what each trains, and what it starts from; knows no tensors.

Nine names for five choices: what a virtual token is, what of the language model is trained, what reads the answer out,
which prompt encoders there are, and at which rates it learns.
"""

from dataclasses import dataclass
from typing import Literal

from ptexport.runtime.errors import TrainError

MethodName = Literal[
    "p-tuning", "p-tuning-v2", "prefix", "prompt-tuning", "lora", "fine-tune", "pet", "manual", "search"
]
VirtualToken = Literal["embedding", "prefix_kv", "word"]
"""A virtual token is an embedding past the table, past keys and values of every layer, or a word to be found."""
BackboneTraining = Literal["nothing", "lora", "all"]
"""What of the language model is trained."""
Head = Literal["words", "linear"]
"""How logits come about: label words' rows of the language-model head, or a linear layer trained with the prompt."""
EncoderKind = Literal["lstm", "mlp", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a method is.

    Attributes:
        virtual_token: what the template's virtual tokens are; None: it has none.
        leading: whether they must all stand before everything else.
        backbone_training: what of the language model is trained.
        heads: that it can have, the usual one first.
        encoders: of its virtual tokens, the usual one first.
    """

    virtual_token: VirtualToken | None
    leading: bool = False
    backbone_training: BackboneTraining = "nothing"
    heads: tuple[Head, ...] = ("words", "linear")
    encoders: tuple[EncoderKind, ...] = ("none",)


METHODS: dict[MethodName, Method] = {
    # Liu et al. 2021, arXiv:2103.10385
    "p-tuning": Method(virtual_token="embedding", encoders=("lstm", "mlp", "none")),
    # Liu et al. 2022, arXiv:2110.07602: plain keys and values, "none", or reparameterised
    "p-tuning-v2": Method(virtual_token="prefix_kv", leading=True, encoders=("none", "mlp")),
    # Li and Liang 2021, arXiv:2101.00190, section 4.3: reparameterised, since plain ones were unstable
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
"""Rates that learn with a frozen backbone; the papers' 1e-5 is for tuning the language model with the prompt."""
HEAD_LR = 1e-3
"""Of a linear head without virtual tokens."""
BACKBONE_LR: dict[BackboneTraining, float] = {"lora": 1e-3, "all": 2e-5}


def find_method(name: MethodName, *, train_backbone: bool) -> Method:
    """Find a method; with `train_backbone`, one that trains the language model together with its virtual tokens.

    Raises:
        TrainError: the method has no such form.
    """
    method = METHODS[name]
    if not train_backbone:
        return method
    if name != "p-tuning":
        raise TrainError(f"tune-backbone: is a form of p-tuning, got {name}; leave it out")
    return Method(virtual_token=method.virtual_token, backbone_training="all", encoders=method.encoders)


def choose_encoder(name: MethodName, method: Method, encoder: EncoderKind | None) -> EncoderKind:
    """Choose a prompt encoder, the usual one if none is asked for.

    Raises:
        TrainError: the method has no such encoder.
    """
    if encoder is None:
        return method.encoders[0]
    if encoder not in method.encoders or method.virtual_token is None:
        known = " or ".join(method.encoders) if method.virtual_token else "none at all"
        raise TrainError(f"encoder {encoder}: {name} has {known}; leave --encoder out")
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
    """Choose the peak rates of virtual tokens and head, and of the language model; None for what is not trained.

    Raises:
        TrainError: a rate is given for what is not trained.
    """
    searched = method.virtual_token == "word"
    learns = (method.virtual_token is not None and not searched) or head == "linear"
    if lr is not None and not learns:
        advice = "give --backbone-lr" if method.backbone_training != "nothing" else "leave it out"
        raise TrainError(f"lr {lr}: {name} trains no virtual tokens and no linear head; {advice}")
    if backbone_lr is not None and method.backbone_training == "nothing":
        raise TrainError(f"backbone-lr {backbone_lr}: {name} leaves the language model as it is; leave it out")
    usual = HEAD_LR if method.virtual_token is None else LR.get((method.virtual_token, encoder))
    return (lr or usual) if learns else None, backbone_lr or BACKBONE_LR.get(method.backbone_training)
