"""Template, labels, rows and a backbone -> a Run; knows the order of things, none of them itself."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

import torch

from ptexport.runtime.errors import TemplateError, TrainError
from ptexport.runtime.rows import Row
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.backbone import Head, load_backbone
from ptexport.toolkit.checkpoint import find_checkpoint
from ptexport.toolkit.data import load_data
from ptexport.toolkit.encoder import EncoderKind, SoftPrompt
from ptexport.toolkit.run import MAX_CHECK_ROWS, Baked, Metrics, Run, RunConfig, TrainSettings
from ptexport.toolkit.task import Task
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate
from ptexport.toolkit.training import Progress, Scorer, fit
from ptexport.toolkit.verbalizer import Verbalizer

DEFAULT_LR: dict[EncoderKind, float] = {"lstm": 5e-3, "mlp": 1e-3, "none": 1e-2}
"""Rates that learn with a frozen backbone; the papers' 1e-5 is for tuning the language model with the prompt."""

VERSIONED = ("ptexport", "torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training, as asked for.

    Attributes:
        model: `smollm2`, `minilm`, a folder or a hub name.
        data: a JSONL or CSV file, `hub:NAME[/CONFIG]` or `cities`.
        dev: a file of dev rows; None: a part of `data`.
        test: a file of test rows; None: a part of `data`.
        template: with at least one virtual token.
        labels: `name=word|word,…` or a file; names alone for a linear head.
        head: label words, or a linear layer.
        pool: what a linear head reads on a masked model.
        encoder: the prompt encoder.
        init: what plain rows (`encoder="none"`) start from: noise of the embeddings' size, or the label words'.
        max_length: most tokens in one row.
        truncate: which text of a pair is cut.
        manual: hand-written templates to measure with the same label words and test rows.
        device: "auto", or a torch device.
        settings: rates and sizes; None: the defaults of the encoder.
    """

    model: str
    data: str
    template: str
    labels: str
    dev: str | None = None
    test: str | None = None
    head: Head = "words"
    pool: Literal["mean", "first"] = "mean"
    encoder: EncoderKind = "lstm"
    init: Literal["random", "words"] = "random"
    max_length: int = 512
    truncate: Truncate = "longest"
    manual: Sequence[str] = field(default=())
    device: str = "auto"
    settings: TrainSettings | None = None


def train(config: TrainConfig, progress: Progress) -> Run:
    """Train a prompt.

    What can be refused without the backbone is refused before it is loaded.

    Raises:
        PtexportError: anything that does not fit together; see `ptexport.runtime.errors`.
    """
    template, manual = _templates(config)
    verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
    settings = config.settings or TrainSettings(lr=DEFAULT_LR[config.encoder])
    data = load_data(
        config.data,
        dev=config.dev,
        test=config.test,
        labels=verbalizer.labels,
        fields=template.fields,
        seed=settings.seed,
    )
    task = Task.prepare(config, verbalizer, load_backbone(find_checkpoint(config.model), config.head))
    compiled = task.compile(template)
    # Made before training, so that a template or label word that does not fit costs no training.
    by_hand = {t.source: (task.scorer(task.compile(t)), task.prompt(t, with_encoder=False)) for t in manual}

    torch.manual_seed(settings.seed)
    prompt = task.prompt(template, with_encoder=True)
    scorer = task.scorer(compiled)
    started = time.perf_counter()
    dev_accuracy = fit(
        prompt,
        scorer,
        TextEncoder.from_json(compiled.tokenizer_json(), fields=template.fields),
        train=data.train,
        dev=data.dev,
        labels=verbalizer.labels,
        settings=settings,
        progress=progress,
    )
    seconds = time.perf_counter() - started

    metrics = Metrics(
        method="p-tuning",
        model=config.model,
        n_train=len(data.train),
        n_dev=len(data.dev),
        n_test=len(data.test),
        trainable_parameters=sum(parameter.numel() for parameter in prompt.trainable_parameters()),
        dev_accuracy=dev_accuracy,
        test_accuracy=scorer.accuracy(prompt, data.test, verbalizer.labels)[0],
        manual_accuracy={
            source: by_hand_scorer.accuracy(fixed, data.test, verbalizer.labels)[0]
            for source, (by_hand_scorer, fixed) in by_hand.items()
        },
        train_seconds=seconds,
        seed=settings.seed,
        versions={name: version(name) for name in VERSIONED},
    )
    return Run(
        config=_run_config(config, settings, task, compiled, scorer),
        metrics=metrics,
        trained={name: value.cpu().numpy() for name, value in prompt.state_dict().items()},
        baked=_bake(prompt, task, scorer),
        tokenizer_json=task.backbone.tokenizer_json,
        check_rows=choose_check_rows(data.test),
    )


def _templates(config: TrainConfig) -> tuple[Template, list[Template]]:
    """Parse the template to be trained and the hand-written ones, and refuse what does not go together."""
    template = Template.parse(config.template)
    where = f"template {config.template!r}"
    if template.n_prompt == 0:
        raise TemplateError(f"{where}: has no virtual token to train; add [P*3], or give it to --manual")
    if config.init == "words" and config.encoder != "none":
        raise TrainError(f"init words: the {config.encoder} encoder makes its rows itself; use --encoder none")
    manual = [Template.parse(source) for source in config.manual]
    if manual and config.head == "linear":
        raise TemplateError("manual: a linear head has no label words for hand-written templates; leave out --manual")
    for other in manual:
        if other.n_prompt:
            raise TemplateError(f"manual {other.source!r}: holds virtual tokens, which nobody trains; leave out [P]")
        if other.fields != template.fields:
            raise TemplateError(
                f"manual {other.source!r}: takes {other.fields}, {where} {template.fields}; use the same"
            )
    return template, manual


def choose_check_rows(rows: Sequence[Row]) -> list[Row]:
    """Choose rows for parity: the longest, the empty and the non-Latin ones first, then the others in order."""
    longest = max(rows, key=lambda row: len(row.text) + len(row.text_b or ""))
    odd = [row for row in rows if row is longest or not row.text.strip() or any(ord(c) > 0x24F for c in row.text)]
    return [*odd, *(row for row in rows if row not in odd)][:MAX_CHECK_ROWS]


def _run_config(
    config: TrainConfig, settings: TrainSettings, task: Task, compiled: CompiledTemplate, scorer: Scorer
) -> RunConfig:
    words = task.verbalizer.words
    return RunConfig(
        method="p-tuning",
        model=config.model,
        backbone=task.backbone.facts,
        template=config.template,
        labels=list(task.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        read=task.classifier.read,
        encoder=config.encoder,
        init=config.init,
        max_length=compiled.max_length,
        truncate=config.truncate,
        n_folded=len(scorer.leading_ids),
        training=settings,
    )


@torch.no_grad()
def _bake(prompt: SoftPrompt, task: Task, scorer: Scorer) -> Baked:
    """Run the encoder one last time, and the backbone over the leading prompt."""
    rows = prompt.prompt_rows()
    causal = task.backbone.facts.causal
    leading = task.classifier.leading_states(scorer.leading_ids, rows).cpu().numpy() if causal else None
    return Baked(
        prompt_rows=rows.cpu().numpy(),
        label_rows=prompt.label_rows.cpu().numpy(),
        label_bias=prompt.label_bias.cpu().numpy(),
        leading_states=leading,
    )
