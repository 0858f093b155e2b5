"""One training, as asked for, and what of it goes together; loads no data and no model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ptexport.runtime.errors import TemplateError, TrainError, VerbalizerError
from ptexport.toolkit import processes
from ptexport.toolkit.methods import EncoderKind, Head, MethodName, choose_encoder, choose_rates, find_method
from ptexport.toolkit.run import TrainSettings
from ptexport.toolkit.task import Choice
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import Truncate
from ptexport.toolkit.verbalizer import Verbalizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training, as asked for.

    Attributes:
        model: `smollm2`, `minilm`, a folder or a hub name.
        revision: branch, tag or commit of a model on the hub.
        data: a JSONL or CSV file, `hub:NAME[/CONFIG]` or `cities`.
        dev: a file of dev rows; None: a part of `data`.
        test: a file of test rows; None: a part of `data`.
        method: see `ptexport.toolkit.methods`.
        tune_backbone: train the language model together with the virtual tokens of p-tuning.
        template: with virtual tokens, if the method has any.
        labels: `name=word|word,…` or a file; names alone for a linear head; `vocab` for every word of the vocabulary.
        head: label words, or a linear layer; None: the method's usual one.
        pool: what a linear head reads on a masked model; None: the mean.
        encoder: the prompt encoder; None: the method's usual one.
        init: what virtual tokens without an encoder start from: noise of the embeddings' size (keys and values: those
            of any words), or the label words'.
        shots: of `manual` on a causal model, how many training rows stand before the template with their answers.
        prior_correction: of `manual`, whether what the model answers to no content is taken from its logits.
        max_length: most tokens in one row; None: 512, or fewer where the backbone takes fewer.
        truncate: which text of a pair is cut.
        strict: refuse texts longer than `max_length` instead of truncating them.
        calibrate: fit a temperature on dev, so that probabilities are honest.
        abstain: share of the answered dev rows that must be right; where the bundle is not sure enough for that, it
            gives no label. None: it always gives one.
        manual: hand-written templates to measure with the same label words and test rows.
        device: "auto", or a torch device.
        settings: rates and sizes.
    """

    model: str
    data: str
    template: str
    labels: str
    settings: TrainSettings
    revision: str | None = None
    dev: str | None = None
    test: str | None = None
    method: MethodName = "p-tuning"
    tune_backbone: bool = False
    head: Head | None = None
    pool: Literal["mean", "first"] | None = None
    encoder: EncoderKind | None = None
    init: Literal["random", "words"] = "random"
    shots: int = 0
    prior_correction: bool = False
    max_length: int | None = None
    truncate: Truncate = "longest"
    strict: bool = False
    calibrate: bool = False
    abstain: float | None = None
    manual: Sequence[str] = field(default=())
    device: str = "auto"


def settle(config: TrainConfig) -> tuple[TrainConfig, Choice]:
    """Choose what the method leaves open, and fill the rates in.

    Raises:
        TrainError: an option does not go with the method.
    """
    name, settings = config.method, config.settings
    method = find_method(name, tune_backbone=config.tune_backbone)
    encoder = choose_encoder(name, method, config.encoder)
    head = config.head or method.heads[0]
    if head not in method.heads:
        raise TrainError(f"head {head}: {name} has {' or '.join(method.heads)}; leave --head out")
    if config.init == "words" and (encoder != "none" or method.virtual_token not in ("row", "states")):
        made = f"the {encoder} encoder makes its rows itself" if encoder != "none" else f"{name} trains no rows"
        advice = "use --encoder none, or " * (encoder != "none" and "none" in method.encoders)
        raise TrainError(f"init words: {made}; {advice}leave --init out")
    if name != "manual" and (config.shots or config.prior_correction):
        option = "shots" if config.shots else "prior-correction"
        raise TrainError(f"{option}: is for hand-written templates, got {name}; use --method manual, or leave it out")
    if settings.lora_rank is not None and method.tuned != "lora":
        raise TrainError(f"lora-rank {settings.lora_rank}: {name} has no LoRA; leave it out")
    if settings.balance and method.virtual_token is None and method.tuned == "nothing":
        raise TrainError(f"balance: {name} learns from no rows; leave it out")
    lr, backbone_lr = choose_rates(name, method, encoder, head, lr=settings.lr, backbone_lr=settings.backbone_lr)
    if lr is None and backbone_lr is None:
        if processes.several():
            raise TrainError(
                f"{name}: learns nothing step by step, so it is for one process; leave 'accelerate launch' out"
            )
        for option, given in (("accumulate", settings.accumulate > 1), ("autocast", settings.autocast is not None)):
            if given:
                raise TrainError(f"{option}: is about training steps, and {name} takes none; leave it out")
    settings = msgspec.structs.replace(settings, lr=lr, backbone_lr=backbone_lr)
    return dataclasses.replace(config, settings=settings), Choice(method=method, encoder=encoder, head=head)


def check_templates(config: TrainConfig, choice: Choice) -> tuple[Template, dict[str, Template]]:
    """Parse the template to be trained and, by their text, the hand-written ones; refuse what does not go together.

    Raises:
        TemplateError: one of them cannot be parsed, or cannot be used here.
    """
    template, method = Template.parse(config.template), choice.method
    where = f"template {config.template!r}"
    if method.virtual_token is not None and template.n_prompt == 0:
        raise TemplateError(
            f"{where}: has no virtual token for {config.method} to train; add [P*3], or use --method manual"
        )
    if method.virtual_token is None and template.n_prompt:
        raise TemplateError(f"{where}: has virtual tokens, which {config.method} does not train; leave out [P]")
    if config.shots and template.has("cls", "sep", "bos"):
        raise TemplateError(
            f"{where}: writes [CLS], [SEP] or [BOS], which examples cannot repeat; leave it or --shots out"
        )
    if method.leading and any(piece.kind != "prompt" for piece in template.pieces[: template.n_prompt]):
        raise TemplateError(
            f"{where}: has a virtual token after other words; {config.method} has all of them first, or use p-tuning"
        )
    if config.truncate == "text" and not template.has("text_b"):
        raise TemplateError(f"truncate text: {where} takes one text, which is cut anyway; leave it out")
    manual = {source: Template.parse(source) for source in config.manual}
    if manual and choice.head == "linear":
        raise TemplateError("manual: a linear head has no label words for hand-written templates; leave out --manual")
    for other in manual.values():
        if other.n_prompt:
            raise TemplateError(f"manual {other.source!r}: holds virtual tokens, which nobody trains; leave out [P]")
        if other.fields != template.fields:
            raise TemplateError(
                f"manual {other.source!r}: takes {other.fields}, {where} {template.fields}; use the same"
            )
    return template, manual


def check_multiple_choice(config: TrainConfig, verbalizer: Verbalizer) -> None:
    """Refuse what a multiple choice has no use for.

    Raises:
        VerbalizerError: there are other than two labels.
        TrainError: an option is about the probabilities of labels.
    """
    if len(verbalizer.labels) != 2:
        got = "every word of the vocabulary" if verbalizer.open else len(verbalizer.labels)
        raise VerbalizerError(
            f"labels {config.labels!r}: got {got}, need 2 for {{choice}}; "
            "give one for the right choice and then one for the others"
        )
    for option, given in (
        ("calibrate", config.calibrate),
        ("abstain", config.abstain is not None),
        ("prior-correction", config.prior_correction),
    ):
        if given:
            raise TrainError(f"{option}: is about labels, and {{choice}} answers with one of the choices; leave it out")
