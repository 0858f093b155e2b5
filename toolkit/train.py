"""Template, labels, rows and a backbone -> a Run; knows the order of things, none of them itself."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from ptexport.runtime.errors import DataError, TemplateError, TrainError
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.audit import choose_check_rows, count_truncated, oddities
from ptexport.toolkit.backbone import Backbone, Head, load_backbone
from ptexport.toolkit.calibration import fit_temperature, fit_threshold
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.data import Data, load_data
from ptexport.toolkit.encoder import EncoderKind, SoftPrompt
from ptexport.toolkit.resume import Ticket, check_same, hash_rows, load_state, save_state
from ptexport.toolkit.run import Baked, Metrics, Run, RunConfig, Stopped, TrainSettings
from ptexport.toolkit.scoring import Examples, Scorer
from ptexport.toolkit.task import Task, find_device
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate
from ptexport.toolkit.training import Progress, Training, fit, saying_what_would_fit
from ptexport.toolkit.verbalizer import Verbalizer

DEFAULT_LR: dict[EncoderKind, float] = {"lstm": 5e-3, "mlp": 1e-3, "none": 1e-2}
"""Rates that learn with a frozen backbone; the papers' 1e-5 is for tuning the language model with the prompt."""

VERSIONED = ("ptexport", "torch", "transformers", "tokenizers")


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
class _Plan:
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


def train(
    config: TrainConfig, progress: Progress, *, state: Path | None = None, backbone: Backbone | None = None
) -> Run:
    """Train a prompt.

    What can be refused without the backbone is refused before it is loaded, and all else before training begins.

    Args:
        config: what to train, on what.
        progress: told how far it is.
        state: file that the training's state is kept in, and gone on from if it is there.
        backbone: the config's, if it is loaded already.

    Returns:
        The run; if Ctrl-C or a loss that is no number stopped it (`run.metrics.stopped`), of the best epoch so far.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    plan = _plan(config, progress, backbone)
    ticket = _ticket(plan)
    torch.manual_seed(plan.config.settings.seed)
    prompt = plan.task.prompt(plan.template, with_encoder=True)
    training = Training(prompt, plan.config.settings, len(plan.data.train))
    if state is not None and state.exists():
        load_state(state, training, ticket)
        progress.note(f"going on after {training.at.done} of {training.total_steps} steps")
    keep = (lambda: None) if state is None else functools.partial(save_state, state, training, ticket)
    with saying_what_would_fit(config.settings.batch_size, plan.learn):
        # Before training, so that a hand-written template or its words that do not fit cost no training.
        manual_accuracy = _measure_by_hand(plan, progress)
        stopped = fit(training, plan.scorer, train=plan.learn, dev=plan.dev, progress=progress, save=keep)
        metrics = _measure(plan, training, stopped, manual_accuracy, ticket.data_sha256)
    return Run(
        config=ticket.config,
        metrics=metrics,
        trained={name: value.cpu().numpy() for name, value in prompt.state_dict().items()},
        baked=_bake(plan, prompt, metrics.temperature),
        tokenizer_json=plan.task.backbone.tokenizer_json,
        check_rows=choose_check_rows(plan.data.test),
    )


def read_finished(folder: Path, config: TrainConfig, progress: Progress, backbone: Backbone | None) -> Run:
    """Read a run that was finished before, if it is what `train` would make of this config now.

    Raises:
        TrainError: it is of other options or data (says which).
        PtexportError: see `train`.
    """
    run = Run.read(folder)
    made = Ticket(config=run.config, data_sha256=run.metrics.data_sha256)
    check_same(folder, made, _ticket(_plan(config, progress, backbone)))
    return run


def load_backbone_for(config: TrainConfig, progress: Progress) -> Backbone:
    """Load the backbone that a training asks for.

    Raises:
        ModelError: it cannot be loaded.
    """
    progress.stage("loading the model")
    return load_backbone(find_checkpoint(config.model, revision=config.revision, stage=progress.stage), config.head)


def _plan(config: TrainConfig, progress: Progress, backbone: Backbone | None) -> _Plan:
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
    dev, test = (Examples.encode(rows, scorer.encoder, labels) for rows in (data.dev, data.test))
    encodings = [*learn.encodings, *dev.encodings, *test.encodings]
    if config.strict and count_truncated(encodings):
        raise DataError(
            f"data: {count_truncated(encodings)} of {len(encodings)} rows are longer than {compiled.max_length} tokens "
            "with the template; shorten them, raise --max-length, or leave out --strict"
        )
    for sentence in oddities(data, labels, template, task.backbone.tokenizer_json, encodings):
        progress.warning(sentence)
    return _Plan(
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


def _ticket(plan: _Plan) -> Ticket:
    data = plan.data
    return Ticket(config=_run_config(plan), data_sha256=hash_rows([*data.train, *data.dev, *data.test]))


def _measure(
    plan: _Plan,
    training: Training,
    stopped: Stopped | None,
    manual_accuracy: dict[str, float],
    data_sha256: str,
) -> Metrics:
    config, scorer, prompt = plan.config, plan.scorer, training.prompt
    logits, targets = scorer.logits(prompt, plan.dev.encodings).cpu(), torch.tensor(plan.dev.targets)
    temperature = fit_temperature(logits, targets) if config.calibrate else 1.0
    return Metrics(
        method="p-tuning",
        model=config.model,
        n_train=len(plan.data.train),
        n_dev=len(plan.data.dev),
        n_test=len(plan.data.test),
        trainable_parameters=sum(parameter.numel() for parameter in prompt.trainable_parameters()),
        epochs=training.at.epochs,
        stopped=stopped,
        dev_accuracy=training.at.best_accuracy,
        test_accuracy=scorer.accuracy(prompt, plan.test)[0],
        temperature=temperature,
        abstain_below=None if config.abstain is None else fit_threshold(logits / temperature, targets, config.abstain),
        manual_accuracy=manual_accuracy,
        train_seconds=training.at.seconds,
        seed=plan.config.settings.seed,
        data_sha256=data_sha256,
        versions={name: version(name) for name in VERSIONED},
    )


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


def _measure_by_hand(plan: _Plan, progress: Progress) -> dict[str, float]:
    """Measure hand-written templates with the same label words and rows; accuracies, 0 to 1."""
    task, accuracies = plan.task, {}
    for source, template in plan.manual.items():
        scorer = task.scorer(task.compile(template))
        examples = Examples.encode(plan.data.test, scorer.encoder, task.verbalizer.labels)
        accuracies[source] = scorer.accuracy(task.prompt(template, with_encoder=False), examples)[0]
        progress.note(f"hand-written {source!r}: test accuracy {accuracies[source]:.1%}")
    return accuracies


def _run_config(plan: _Plan) -> RunConfig:
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


@torch.no_grad()
def _bake(plan: _Plan, prompt: SoftPrompt, temperature: float) -> Baked:
    """Run the encoder one last time, and the backbone over the leading prompt."""
    rows = prompt.prompt_rows()
    task, leading_ids = plan.task, plan.scorer.leading_ids
    causal = task.backbone.facts.causal
    return Baked(
        prompt_rows=rows.cpu().numpy(),
        label_rows=(prompt.label_rows / temperature).cpu().numpy(),
        label_bias=(prompt.label_bias / temperature).cpu().numpy(),
        leading_states=task.classifier.leading_states(leading_ids, rows).cpu().numpy() if causal else None,
    )
