"""What is asked for -> a Plan: parts that fit together, with all that can be refused refused; trains nothing."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ptexport.runtime.errors import DataError, TemplateError, TrainError
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.audit import count_truncated, oddities
from ptexport.toolkit.backbone import Backbone, Head, load_backbone
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.data import Data, load_data
from ptexport.toolkit.encoder import EncoderKind
from ptexport.toolkit.run import RunConfig, TrainSettings
from ptexport.toolkit.scoring import Examples, Scorer
from ptexport.toolkit.task import Task, find_device
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate
from ptexport.toolkit.training import Progress
from ptexport.toolkit.verbalizer import Verbalizer

FEW_DEV_ROWS = 100
"""Fewer cannot tell a probability of 0.8 from one of 0.9: the standard error of a share is 0.04 at 100."""

DEFAULT_LR: dict[EncoderKind, float] = {"lstm": 5e-3, "mlp": 1e-3, "none": 1e-2}
"""Rates that learn with a frozen backbone; the papers' 1e-5 is for tuning the language model with the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training, as asked for.

    Attributes:
        model: `smollm2`, `minilm`, a folder or a hub name.
        revision: branch, tag or commit of a model on the hub.
        data: a JSONL or CSV file, `hub:NAME[/CONFIG]` or `cities`.
        dev: a file of dev rows; None: a part of `data`.
        test: a file of test rows; None: a part of `data`.
        template: with at least one virtual token.
        labels: `name=word|word,…` or a file; names alone for a linear head.
        head: label words, or a linear layer.
        pool: what a linear head reads on a masked model; None: the mean.
        encoder: the prompt encoder.
        init: what plain rows (`encoder="none"`) start from: noise of the embeddings' size, or the label words'.
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
    head: Head = "words"
    pool: Literal["mean", "first"] | None = None
    encoder: EncoderKind = "lstm"
    init: Literal["random", "words"] = "random"
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
        config: as asked for.
        template: the one trained.
        task: verbalizer and backbone.
        compiled: the template on the backbone.
        scorer: scores as the bundle will.
        data: all rows.
        learn: training rows, encoded for `fit`.
        dev: dev rows, encoded for the scorer.
        test: test rows, likewise.
        manual: hand-written templates, by their text.
    """

    config: TrainConfig
    template: Template
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
    if config.settings.lr is None:
        settings = msgspec.structs.replace(config.settings, lr=DEFAULT_LR[config.encoder])
        config = dataclasses.replace(config, settings=settings)
    template, manual = check_templates(config)
    verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
    device = find_device(config.device)
    labels = verbalizer.labels
    seed = config.settings.seed
    data = load_data(config.data, dev=config.dev, test=config.test, labels=labels, fields=template.fields, seed=seed)
    task = Task.prepare(config, verbalizer, backbone or load_backbone_for(config, progress), device)
    compiled = task.compile(template)
    scorer = task.scorer(compiled)
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=template.fields)
    learn = Examples.encode(data.train, whole if scorer.trains_leading else scorer.encoder, labels)
    dev, test = (Examples.encode(part, scorer.encoder, labels) for part in (data.dev, data.test))
    rows = [*data.train, *data.dev, *data.test]
    encodings = [*learn.encodings, *dev.encodings, *test.encodings]
    if config.strict and count_truncated(encodings):
        first = next(row for row, encoding in zip(rows, encodings, strict=True) if encoding.overflowing)
        raise DataError(
            f"data: {count_truncated(encodings)} of {len(encodings)} rows are longer than {compiled.max_length} tokens "
            f"with the template, the first at {first.where}; shorten them, raise --max-length, or leave out --strict"
        )
    if (config.calibrate or config.abstain is not None) and len(data.dev) < FEW_DEV_ROWS:
        progress.warning(f"{len(data.dev)} dev rows say little of how sure answers may be; give more with --dev")
    for sentence in oddities(data, labels, template, task.backbone.tokenizer_json, encodings):
        progress.warning(sentence)
    return Plan(
        config=config,
        template=template,
        task=task,
        compiled=compiled,
        scorer=scorer,
        data=data,
        learn=learn,
        dev=dev,
        test=test,
        manual=manual,
    )


def load_backbone_for(config: TrainConfig, progress: Progress) -> Backbone:
    """Load the backbone that a training asks for.

    Raises:
        ModelError: it cannot be loaded.
    """
    progress.stage("loading the model")
    return load_backbone(find_checkpoint(config.model, revision=config.revision, stage=progress.stage), config.head)


def check_templates(config: TrainConfig) -> tuple[Template, dict[str, Template]]:
    """Parse the template to be trained and, by their text, the hand-written ones; refuse what does not go together.

    Raises:
        TemplateError: one of them cannot be parsed, or cannot be used here.
        TrainError: the options exclude each other.
    """
    template = Template.parse(config.template)
    where = f"template {config.template!r}"
    if template.n_prompt == 0:
        raise TemplateError(f"{where}: has no virtual token to train; add [P*3], or give it to --manual")
    if config.init == "words" and config.encoder != "none":
        raise TrainError(f"init words: the {config.encoder} encoder makes its rows itself; use --encoder none")
    if config.truncate == "text" and not template.has("text_b"):
        raise TemplateError(f"truncate text: {where} takes one text, which is cut anyway; leave it out")
    manual = {source: Template.parse(source) for source in config.manual}
    if manual and config.head == "linear":
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
        method="p-tuning",
        model=config.model,
        revision=task.backbone.commit,
        backbone=task.backbone.facts,
        template=config.template,
        labels=list(task.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        read=task.classifier.read,
        encoder=config.encoder,
        init=config.init,
        max_length=plan.compiled.max_length,
        truncate=config.truncate,
        calibrate=config.calibrate,
        abstain=config.abstain,
        n_folded=len(plan.scorer.leading_ids),
        training=plan.config.settings,
    )
