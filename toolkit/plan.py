"""What is asked for -> a Plan: parts that fit together, with all that can be refused refused; trains nothing."""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ptexport.runtime.errors import DataError, TemplateError, TrainError, VerbalizerError
from ptexport.runtime.rows import Row
from ptexport.toolkit import processes
from ptexport.toolkit.audit import count_truncated, oddities
from ptexport.toolkit.backbone import Backbone, load_backbone
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.data import Data, load_data
from ptexport.toolkit.methods import EncoderKind, Head, MethodName, choose_encoder, choose_rates, find_method
from ptexport.toolkit.run import RunConfig, TrainSettings
from ptexport.toolkit.scoring import Examples, Scorer
from ptexport.toolkit.task import Choice, Task, find_device, has_bf16
from ptexport.toolkit.template import Example, Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate
from ptexport.toolkit.training import Progress
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

FEW_DEV_ROWS = 100
"""Fewer cannot tell a probability of 0.8 from one of 0.9: the standard error of a share is 0.04 at 100."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose parts fit together.

    Attributes:
        config: as asked for, its rates chosen.
        template: the one trained.
        examples: rows that stand before it, with their answers.
        task: verbalizer and backbone.
        compiled: the template on the backbone.
        scorer: scores as the bundle will.
        data: all rows.
        learn: training rows, encoded for the scorer.
        dev: dev rows, likewise.
        test: test rows, likewise.
        manual: hand-written templates, by their text.
    """

    config: TrainConfig
    template: Template
    examples: list[Example]
    task: Task
    compiled: CompiledTemplate
    scorer: Scorer
    data: Data
    learn: Examples
    dev: Examples
    test: Examples
    manual: dict[str, Template]


def make_plan(config: TrainConfig, progress: Progress, backbone: Backbone | None) -> Plan:
    """Fit the parts of a training together.

    What can be refused without the backbone is refused before it is loaded, and all else before training begins.

    Args:
        config: what to train, on what.
        progress: told how far it is, and what is odd about the rows.
        backbone: the config's, if it is loaded already.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    config, choice = settle(config)
    template, manual = check_templates(config, choice)
    verbalizer = Verbalizer.parse(config.labels, linear=choice.head == "linear")
    if "choice" in template.fields:
        _check_multiple_choice(config, verbalizer)
    device = find_device(config.device)
    if config.settings.autocast == "bf16" and not has_bf16(device):
        progress.warning(f"autocast bf16: {device.type} here may not compute in bf16, and then fp32 is quicker")
    seed = config.settings.seed
    declared = None if verbalizer.open else verbalizer.labels
    data = load_data(config.data, dev=config.dev, test=config.test, labels=declared, fields=template.fields, seed=seed)
    backbone = backbone or load_backbone_for(config, progress)
    if backbone.head != choice.head:
        raise TrainError(f"{config.method}: needs a backbone loaded for a head of {choice.head}, got {backbone.head}")
    if config.shots and not backbone.facts.causal:
        raise TrainError(f"shots {config.shots}: {backbone.facts.name} is a masked model; use a causal one")
    verbalizer = verbalizer.filled(WordTokenizer(backbone.tokenizer_json), spaced=template.answer_spaced)
    labels = verbalizer.labels
    if verbalizer.open:
        _check_single(data, labels)
    task = Task.prepare(config, choice, verbalizer, backbone, device)
    pairs = data.pairs(labels)
    examples = _choose_examples(pairs.train, verbalizer, config.shots, seed)
    n_prefix = template.n_prompt if choice.method.virtual_token == "states" else 0
    compiled = task.compile(template.with_examples(examples), n_prefix=n_prefix)
    scorer = task.scorer(compiled)
    learn, dev, test = (Examples.encode(part, scorer.encoder, labels) for part in (data.train, data.dev, data.test))
    rows = [*pairs.train, *pairs.dev, *pairs.test]
    encodings = [*learn.encodings, *dev.encodings, *test.encodings]
    if config.strict and count_truncated(encodings):
        first = next(row for row, encoding in zip(rows, encodings, strict=True) if encoding.overflowing)
        raise DataError(
            f"data: {count_truncated(encodings)} of {len(encodings)} rows are longer than {compiled.max_length} tokens "
            f"with the template, the first at {first.where}; shorten them, raise --max-length, or leave out --strict"
        )
    if (config.calibrate or config.abstain is not None) and len(data.dev) < FEW_DEV_ROWS:
        progress.warning(f"{len(data.dev)} dev rows say little of how sure answers may be; give more with --dev")
    for sentence in oddities(pairs, declared or (), template, task.backbone.tokenizer_json, encodings):
        progress.warning(sentence)
    return Plan(
        config=config,
        template=template,
        examples=examples,
        task=task,
        compiled=compiled,
        scorer=scorer,
        data=data,
        learn=learn,
        dev=dev,
        test=test,
        manual=manual,
    )


def _check_single(data: Data, labels: Sequence[str]) -> None:
    """Check that every label is a word of the vocabulary.

    Raises:
        DataError: some are not (says how many, and where the first is).
    """
    known, rows = set(labels), (*data.train, *data.dev, *data.test)
    several = [row for row in rows if row.label not in known]
    if several:
        raise DataError(
            f"{several[0].where}: label {several[0].label!r} is not one token here, nor are those of "
            f"{len(several) - 1} more of {len(rows)} rows; leave them out"
        )


def load_backbone_for(config: TrainConfig, progress: Progress) -> Backbone:
    """Load the backbone that a training asks for.

    Raises:
        TrainError: its options do not go together.
        ModelError: it cannot be loaded.
    """
    progress.stage("loading the model")
    _, choice = settle(config)
    with processes.first_then_others():
        return load_backbone(find_checkpoint(config.model, revision=config.revision, stage=progress.stage), choice.head)


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


def _check_multiple_choice(config: TrainConfig, verbalizer: Verbalizer) -> None:
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


def _choose_examples(rows: Sequence[Row], verbalizer: Verbalizer, count: int, seed: int) -> list[Example]:
    """Choose rows at random, as many of each label as of any other.

    Raises:
        DataError: there are fewer.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    groups: dict[str | None, list[Row]] = {label: [] for label in verbalizer.labels}
    for row in shuffled:
        groups[row.label].append(row)
    turns = [row for turn in itertools.zip_longest(*groups.values()) for row in turn if row is not None]
    words = dict(zip(verbalizer.labels, verbalizer.words or (), strict=False))
    if len(turns) < count:
        raise DataError(f"shots {count}: got {len(turns)} training rows; ask for fewer, or give more rows")
    return [Example(text=row.text, text_b=row.text_b, answer=words[row.label or ""][0]) for row in turns[:count]]


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


def run_config(plan: Plan) -> RunConfig:
    """Put into a run what it came from."""
    config, task = plan.config, plan.task
    words = task.verbalizer.words
    return RunConfig(
        method=config.method,
        tune_backbone=config.tune_backbone,
        model=config.model,
        revision=task.backbone.commit,
        backbone=task.backbone.facts,
        template=config.template,
        labels=list(task.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        open_answers=task.verbalizer.open,
        read=task.classifier.read,
        encoder=task.choice.encoder,
        init=config.init,
        examples=plan.examples,
        prior_correction=config.prior_correction,
        n_prefix=plan.compiled.n_prefix,
        max_length=plan.compiled.max_length,
        truncate=config.truncate,
        calibrate=config.calibrate,
        abstain=config.abstain,
        n_folded=len(plan.scorer.leading_ids),
        training=plan.config.settings,
    )
