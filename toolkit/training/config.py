"""A training configuration -> checks that options fit together, and the same with defaults filled in.

Loads neither data nor models.
"""

import msgspec

from ptexport.runtime.errors import TemplateError, TrainError, VerbalizerError
from ptexport.toolkit.methods import EncoderKind, Head, Method, choose_encoder, choose_rates, find_method
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.run.config import TrainConfig
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.training.defaults import choose_epochs


def check_config(config: TrainConfig) -> Method:
    """Check what depends on neither the data nor the model, and find the method.

    Raises:
        TrainError: an option does not fit the method.
        TemplateError: the template cannot be parsed, or does not fit the method.
    """
    name = config.method
    method = find_method(name, train_backbone=config.train_backbone)
    encoder = choose_encoder(name, method, config.encoder)
    if config.head is not None and config.head not in method.heads:
        raise TrainError(f"head {config.head}: {name} has {' or '.join(method.heads)}; leave --head out")
    _check_options(config, method, encoder)
    if not method.takes_steps:
        _check_without_steps(config)
    if config.template is not None:
        _check_trained(config, method, Template.parse(config.template))
    return method


def fill_in(config: TrainConfig, method: Method, head: Head, template: str, n_train: int) -> TrainConfig:
    """Fill in what was not given.

    Args:
        config: a checked configuration.
        method: its method.
        head: the head.
        template: the template.
        n_train: number of training rows.

    Raises:
        TrainError: an option is for something that is not trained.
    """
    name, given = config.method, config.settings
    encoder = choose_encoder(name, method, config.encoder)
    lr, backbone_lr = choose_rates(name, method, encoder, head, lr=given.lr, backbone_lr=given.backbone_lr)
    epochs, patience = choose_epochs(name, n_train, given.epochs, given.patience)
    settings = msgspec.structs.replace(given, lr=lr, backbone_lr=backbone_lr, epochs=epochs, patience=patience)
    return msgspec.structs.replace(config, encoder=encoder, head=head, template=template, settings=settings)


def _check_options(config: TrainConfig, method: Method, encoder: EncoderKind) -> None:
    """Raise TrainError if an option does not fit the method."""
    name, settings = config.method, config.settings
    if config.init == "words" and (encoder != "none" or method.virtual_token not in ("embedding", "prefix_kv")):
        got = f"the {encoder} encoder computes its virtual tokens" if encoder != "none" else f"{name} trains none"
        advice = "use --encoder none, or " * (encoder != "none" and "none" in method.encoders)
        raise TrainError(f"init words: sets virtual tokens, but {got}; {advice}leave --init out")
    if name != "manual" and (config.n_shots or config.contextual_calibration):
        option = "shots" if config.n_shots else "prior-correction"
        raise TrainError(f"{option}: is for hand-written templates, got {name}; use --method manual, or leave it out")
    if settings.lora_rank is not None and method.backbone_training != "lora":
        raise TrainError(f"lora-rank {settings.lora_rank}: {name} does not use LoRA; leave it out")
    if settings.balance and method.virtual_token is None and method.backbone_training == "nothing":
        raise TrainError(f"balance: {name} does not train on rows; leave it out")


def _check_without_steps(config: TrainConfig) -> None:
    """Raise TrainError if an option is for optimizer steps, which the method does not take."""
    name, settings = config.method, config.settings
    if distributed.is_distributed():
        raise TrainError(f"{name}: takes no optimizer steps and needs one process; leave 'accelerate launch' out")
    for option, given in (("accumulate", settings.accumulate > 1), ("autocast", settings.autocast is not None)):
        if given:
            raise TrainError(f"{option}: is for optimizer steps, and {name} takes none; leave it out")


def check_templates(config: TrainConfig, method: Method) -> tuple[Template, dict[str, Template]]:
    """Parse the template to train and the hand-written templates.

    Args:
        config: a configuration from `fill_in`.
        method: its method.

    Returns:
        The template to train, and the hand-written ones by their text.

    Raises:
        TemplateError: a template cannot be parsed, or does not fit the method.
    """
    assert config.template is not None, "it is filled in"
    template = Template.parse(config.template)
    _check_trained(config, method, template)
    manual = {source: Template.parse(source) for source in config.manual}
    if manual and config.head == "linear":
        raise TemplateError("manual: a linear head has no label words for hand-written templates; leave out --manual")
    for other in manual.values():
        if other.n_prompt:
            raise TemplateError(f"manual {other.source!r}: has virtual tokens, which are not trained; leave out [P]")
        if other.fields != template.fields:
            raise TemplateError(
                f"manual {other.source!r}: takes {other.fields}, template {config.template!r} takes "
                f"{template.fields}; use the same"
            )
    return template, manual


def _check_trained(config: TrainConfig, method: Method, template: Template) -> None:
    """Raise TemplateError if the template to train does not fit the method."""
    where = f"template {config.template!r}"
    if method.virtual_token is not None and template.n_prompt == 0:
        raise TemplateError(
            f"{where}: has no virtual token for {config.method} to train; add [P*3], or use --method manual"
        )
    if method.virtual_token is None and template.n_prompt:
        raise TemplateError(f"{where}: has virtual tokens, which {config.method} does not train; leave out [P]")
    if config.n_shots and template.has("cls", "sep", "bos"):
        raise TemplateError(f"{where}: has [CLS], [SEP] or [BOS], which --shots cannot repeat; leave it or --shots out")
    if method.leading and any(piece.kind != "prompt" for piece in template.pieces[: template.n_prompt]):
        raise TemplateError(
            f"{where}: has a virtual token after other words; put all first for {config.method}, or use p-tuning"
        )
    if config.truncate == "text" and not template.has("text_b"):
        raise TemplateError(f"truncate text: {where} takes one text, which is truncated anyway; leave it out")


def check_multiple_choice(config: TrainConfig, verbalizer: Verbalizer) -> None:
    """Check the labels and options of a multiple choice.

    Raises:
        VerbalizerError: the number of labels is not 2.
        TrainError: an option is for label probabilities.
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
        ("prior-correction", config.contextual_calibration),
    ):
        if given:
            raise TrainError(f"{option}: is for labels, and {{choice}} predicts one of the choices; leave it out")
