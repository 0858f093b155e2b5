"""Template, labels, rows and a backbone -> a Run; knows the order of things, none of them itself."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Encoding

from ptexport.runtime.errors import DataError, TemplateError, TrainError
from ptexport.runtime.rows import Row
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.backbone import Head, load_backbone
from ptexport.toolkit.calibration import fit_temperature, fit_threshold
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.data import Data, load_data
from ptexport.toolkit.encoder import EncoderKind, SoftPrompt
from ptexport.toolkit.resume import Ticket, hash_rows, load_state, save_state
from ptexport.toolkit.run import MAX_CHECK_ROWS, Baked, Metrics, Run, RunConfig, TrainSettings
from ptexport.toolkit.task import Task, find_device
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate, count_split_differently
from ptexport.toolkit.training import Examples, Progress, Scorer, Training, fit
from ptexport.toolkit.verbalizer import Verbalizer

DEFAULT_LR: dict[EncoderKind, float] = {"lstm": 5e-3, "mlp": 1e-3, "none": 1e-2}
"""Rates that learn with a frozen backbone; the papers' 1e-5 is for tuning the language model with the prompt."""

_LAST_LATIN = 0x24F  # the end of Unicode's block Latin Extended-B
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
        settings: rates and sizes; None: the defaults of the encoder.
    """

    model: str
    data: str
    template: str
    labels: str
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
    settings: TrainSettings | None = None


def train(config: TrainConfig, progress: Progress, *, state: Path | None = None) -> Run:
    """Train a prompt.

    What can be refused without the backbone is refused before it is loaded.

    Args:
        config: what to train, on what.
        progress: told how far it is.
        state: file that the training's state is kept in, and gone on from if it is there.

    Returns:
        The run; if Ctrl-C or a loss that is no number stopped it (`run.metrics.stopped`), of the best epoch so far.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    template, manual = _templates(config)
    verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
    settings = config.settings or TrainSettings(lr=DEFAULT_LR[config.encoder])
    device = find_device(config.device)
    data = load_data(
        config.data,
        dev=config.dev,
        test=config.test,
        labels=verbalizer.labels,
        fields=template.fields,
        seed=settings.seed,
    )
    progress.stage("loading the model")
    checkpoint = find_checkpoint(config.model, revision=config.revision, stage=progress.stage)
    backbone = load_backbone(checkpoint, config.head)
    task = Task.prepare(config, verbalizer, backbone, device)
    compiled = task.compile(template)
    scorer = task.scorer(compiled)
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=template.fields)
    learn = Examples.encode(data.train, whole if scorer.trains_leading else scorer.encoder, verbalizer.labels)
    dev, test = (Examples.encode(rows, scorer.encoder, verbalizer.labels) for rows in (data.dev, data.test))
    _warn(config, compiled, task, data, [*learn.encodings, *dev.encodings, *test.encodings], progress)
    # Before training, so that a hand-written template or its words that do not fit cost no training.
    manual_accuracy = _measure_by_hand(manual, task, data.test, progress)

    torch.manual_seed(settings.seed)
    training = Training(task.prompt(template, with_encoder=True), settings, len(data.train))
    commit = checkpoint.revision if checkpoint.from_hub else None
    run_config = _run_config(config, commit, settings, task, compiled, scorer)
    ticket = Ticket(config=run_config, data_sha256=hash_rows([*data.train, *data.dev, *data.test]))
    if state is not None and state.exists():
        load_state(state, training, ticket)
        progress.note(f"going on after {training.at.done} of {training.total_steps} steps")
    keep = (lambda: None) if state is None else functools.partial(save_state, state, training, ticket)
    stopped = fit(training, scorer, train=learn, dev=dev, progress=progress, save=keep)
    prompt = training.prompt
    dev_logits = scorer.logits(prompt, dev.encodings).cpu()
    dev_targets = torch.tensor(dev.targets)
    temperature = fit_temperature(dev_logits, dev_targets) if config.calibrate else 1.0
    threshold = None if config.abstain is None else fit_threshold(dev_logits / temperature, dev_targets, config.abstain)

    metrics = Metrics(
        method="p-tuning",
        model=config.model,
        n_train=len(data.train),
        n_dev=len(data.dev),
        n_test=len(data.test),
        trainable_parameters=sum(parameter.numel() for parameter in prompt.trainable_parameters()),
        epochs=training.at.epochs,
        stopped=stopped,
        dev_accuracy=training.at.best_accuracy,
        test_accuracy=scorer.accuracy(prompt, test)[0],
        temperature=temperature,
        abstain_below=threshold,
        manual_accuracy=manual_accuracy,
        train_seconds=training.at.seconds,
        seed=settings.seed,
        versions={name: version(name) for name in VERSIONED},
    )
    return Run(
        config=run_config,
        metrics=metrics,
        trained={name: value.cpu().numpy() for name, value in prompt.state_dict().items()},
        baked=_bake(prompt, task, scorer, temperature),
        tokenizer_json=task.backbone.tokenizer_json,
        check_rows=choose_check_rows(data.test),
    )


def _templates(config: TrainConfig) -> tuple[Template, dict[str, Template]]:
    """Parse the template to be trained and, by their text, the hand-written ones; refuse what does not go together."""
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


def _measure_by_hand(
    templates: Mapping[str, Template], task: Task, rows: Sequence[Row], progress: Progress
) -> dict[str, float]:
    """Measure hand-written templates with the same label words and rows; accuracies, 0 to 1."""
    accuracies = {}
    for source, template in templates.items():
        scorer = task.scorer(task.compile(template))
        examples = Examples.encode(rows, scorer.encoder, task.verbalizer.labels)
        accuracies[source] = scorer.accuracy(task.prompt(template, with_encoder=False), examples)[0]
        progress.note(f"hand-written {source!r}: test accuracy {accuracies[source]:.1%}")
    return accuracies


def _warn(
    config: TrainConfig,
    compiled: CompiledTemplate,
    task: Task,
    data: Data,
    encodings: Sequence[Encoding],
    progress: Progress,
) -> None:
    """Say what is odd about the rows but stops nothing.

    Raises:
        DataError: `strict`, and a text is too long.
    """
    joined = count_split_differently(Template.parse(config.template), task.backbone.tokenizer_json, data.train)
    if joined:
        progress.note(
            f"{joined} of {len(data.train)} training rows would be other tokens as one string, since "
            f"{config.template!r} glues characters to a text; a space between them avoids it"
        )
    truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    if truncated:
        what = f"{truncated} of {len(encodings)} rows are longer than {compiled.max_length} tokens with the template"
        if config.strict:
            raise DataError(f"data: {what}; shorten them, raise --max-length, or leave out --strict")
        progress.note(f"{what} and are truncated; --strict refuses them")
    absent = [label for label in task.verbalizer.labels if all(row.label != label for row in data.train)]
    if absent:
        progress.note(f"no training row has the label {', '.join(map(repr, absent))}")
    seen = {(row.text, row.text_b) for row in data.train}
    twice = sum((row.text, row.text_b) in seen for row in data.test)
    if twice:
        progress.note(f"{twice} of {len(data.test)} test rows are in the training rows too; accuracy looks too good")


def choose_check_rows(rows: Sequence[Row]) -> list[Row]:
    """Choose at most `MAX_CHECK_ROWS` rows for parity: the longest, then empty, then non-Latin, then others."""
    longest = max(rows, key=lambda row: len(row.text) + len(row.text_b or ""))

    def rank(row: Row) -> int:
        if row is longest:
            return 0
        return 1 if not row.text.strip() else 2 if any(ord(c) > _LAST_LATIN for c in row.text) else 3

    return sorted(rows, key=rank)[:MAX_CHECK_ROWS]


def _run_config(
    config: TrainConfig,
    commit: str | None,
    settings: TrainSettings,
    task: Task,
    compiled: CompiledTemplate,
    scorer: Scorer,
) -> RunConfig:
    words = task.verbalizer.words
    return RunConfig(
        method="p-tuning",
        model=config.model,
        revision=commit,
        backbone=task.backbone.facts,
        template=config.template,
        labels=list(task.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        read=task.classifier.read,
        encoder=config.encoder,
        init=config.init,
        max_length=compiled.max_length,
        truncate=config.truncate,
        calibrate=config.calibrate,
        abstain=config.abstain,
        n_folded=len(scorer.leading_ids),
        training=settings,
    )


@torch.no_grad()
def _bake(prompt: SoftPrompt, task: Task, scorer: Scorer, temperature: float) -> Baked:
    """Run the encoder one last time, and the backbone over the leading prompt."""
    rows = prompt.prompt_rows()
    causal = task.backbone.facts.causal
    leading = task.classifier.leading_states(scorer.leading_ids, rows).cpu().numpy() if causal else None
    return Baked(
        prompt_rows=rows.cpu().numpy(),
        label_rows=(prompt.label_rows / temperature).cpu().numpy(),
        label_bias=(prompt.label_bias / temperature).cpu().numpy(),
        leading_states=leading,
    )
