"""One training, as asked for, and what of it goes together; loads no data and no model."""

import dataclasses

import msgspec

from ptexport.runtime.errors import TemplateError, TrainError, VerbalizerError
from ptexport.toolkit.methods import choose_encoder, choose_rates, find_method
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.run.config import Choice, TrainConfig
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer


def settle(config: TrainConfig) -> tuple[TrainConfig, Choice]:
    """Choose what the method leaves open, and fill the rates in.

    Raises:
        TrainError: an option does not go with the method.
    """
    name, settings = config.method, config.settings
    method = find_method(name, train_backbone=config.train_backbone)
    encoder = choose_encoder(name, method, config.encoder)
    head = config.head or method.heads[0]
    if head not in method.heads:
        raise TrainError(f"head {head}: {name} has {' or '.join(method.heads)}; leave --head out")
    if config.init == "words" and (encoder != "none" or method.virtual_token not in ("embedding", "prefix_kv")):
        made = f"the {encoder} encoder makes its rows itself" if encoder != "none" else f"{name} trains no rows"
        advice = "use --encoder none, or " * (encoder != "none" and "none" in method.encoders)
        raise TrainError(f"init words: {made}; {advice}leave --init out")
    if name != "manual" and (config.n_shots or config.prior_correction):
        option = "shots" if config.n_shots else "prior-correction"
        raise TrainError(f"{option}: is for hand-written templates, got {name}; use --method manual, or leave it out")
    if settings.lora_rank is not None and method.backbone_training != "lora":
        raise TrainError(f"lora-rank {settings.lora_rank}: {name} has no LoRA; leave it out")
    if settings.balance and method.virtual_token is None and method.backbone_training == "nothing":
        raise TrainError(f"balance: {name} learns from no rows; leave it out")
    lr, backbone_lr = choose_rates(name, method, encoder, head, lr=settings.lr, backbone_lr=settings.backbone_lr)
    if lr is None and backbone_lr is None:
        if distributed.several():
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
    if config.n_shots and template.has("cls", "sep", "bos"):
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
        got = "every word of the vocabulary" if verbalizer.open_vocabulary else len(verbalizer.labels)
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
