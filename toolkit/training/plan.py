"""A training configuration -> a Plan: loaded parts that fit together. Reports what does not fit before training."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptexport.runtime.errors import DataError, TrainError
from ptexport.runtime.rows import Row
from ptexport.toolkit.data.splits import DataSplits, load_data
from ptexport.toolkit.methods import Method
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.device import find_device, has_bf16
from ptexport.toolkit.prompt.prompt_model import PromptModel, choose_max_length, choose_pooling
from ptexport.toolkit.prompt.scoring import EncodedRows, Scorer
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.config import RunConfig, TrainConfig
from ptexport.toolkit.template.compile import CompiledTemplate
from ptexport.toolkit.template.template import Shot, Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.config import check_multiple_choice, check_templates, head_of, resolve
from ptexport.toolkit.training.data_checks import find_data_problems

FEW_DEV_ROWS = 100
"""Fewer rows cannot tell a probability of 0.8 from 0.9: the standard error of a share is 0.04 at 100 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose parts fit together.

    Attributes:
        config: the configuration, with defaults filled in.
        template: the template to train.
        shots: labelled rows before the template.
        prompt_model: template and labels on the backbone.
        compiled: the template, compiled for the backbone.
        scorer: computes logits as the bundle will.
        data: all rows.
        train: training rows, encoded for the scorer.
        dev: dev rows, encoded for the scorer.
        test: test rows, encoded for the scorer.
        manual: hand-written templates, by their text.
    """

    config: TrainConfig
    template: Template
    shots: list[Shot]
    prompt_model: PromptModel
    compiled: CompiledTemplate
    scorer: Scorer
    data: DataSplits
    train: EncodedRows
    dev: EncodedRows
    test: EncodedRows
    manual: dict[str, Template]

    @property
    def run_config(self) -> RunConfig:
        """The configuration of the run, before the backbone is trained."""
        return RunConfig.of(
            self.config,
            backbone=self.prompt_model.backbone.facts,
            commit=self.prompt_model.backbone.commit,
            verbalizer=self.prompt_model.verbalizer,
            compiled=self.compiled,
            pooling=self.prompt_model.classifier.pooling,
            n_folded=len(self.scorer.folded_ids),
            shots=self.shots,
        )


def make_plan(config: TrainConfig, progress: Progress, backbone: Backbone | None) -> Plan:
    """Load the parts of a training and check that they fit together.

    Checks that do not need the backbone run before it is loaded, all others before training starts.

    Args:
        config: all options of the training.
        progress: receives stages and warnings about rows.
        backbone: the backbone of the configuration, if it is loaded already.

    Raises:
        PtexportError: parts do not fit together; see `ptexport.runtime.errors`.
    """
    config, method = resolve(config)
    template, manual = check_templates(config, method)
    verbalizer = _parse_labels(config, template)
    device = _find_device(config, progress)
    declared = None if verbalizer.open_vocabulary else verbalizer.labels
    seed = config.settings.seed
    data = load_data(config.data, dev=config.dev, test=config.test, labels=declared, fields=template.fields, seed=seed)
    backbone = backbone or load_backbone_for(config, progress)
    _check_backbone(config, backbone)
    verbalizer = _fill_labels(verbalizer, backbone, template, data)
    prompt_model = _make_prompt_model(config, method, verbalizer, backbone, device)
    shots = _choose_shots(data.pairs(verbalizer.labels).train, verbalizer, config.n_shots, seed)
    n_prefix = template.n_prompt if method.virtual_token == "prefix_kv" else 0
    compiled = prompt_model.compile(template.with_shots(shots), n_prefix=n_prefix)
    scorer = prompt_model.scorer(compiled)
    train, dev, test = (EncodedRows.encode(rows, scorer.encoder, verbalizer.labels) for rows in data.parts)
    plan = Plan(
        config=config,
        template=template,
        shots=shots,
        prompt_model=prompt_model,
        compiled=compiled,
        scorer=scorer,
        data=data,
        train=train,
        dev=dev,
        test=test,
        manual=manual,
    )
    _check_rows(plan, declared or (), progress)
    return plan


def load_backbone_for(config: TrainConfig, progress: Progress) -> Backbone:
    """Load the backbone of a configuration.

    Raises:
        TrainError: the method cannot train the backbone too.
        ModelError: the backbone cannot be loaded.
    """
    progress.stage("loading the model")
    head = head_of(config)
    with distributed.rank_0_first():
        return load_backbone(find_checkpoint(config.model, revision=config.revision, stage=progress.stage), head)


def _parse_labels(config: TrainConfig, template: Template) -> Verbalizer:
    verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
    if "choice" in template.fields:
        check_multiple_choice(config, verbalizer)
    return verbalizer


def _fill_labels(verbalizer: Verbalizer, backbone: Backbone, template: Template, data: DataSplits) -> Verbalizer:
    """Make the words of the vocabulary the labels, with `open_vocabulary`.

    Raises:
        DataError: a row has another label.
    """
    filled = verbalizer.filled(WordTokenizer(backbone.tokenizer_json), spaced=template.answer_spaced)
    if filled.open_vocabulary:
        _check_single_tokens(data, filled.labels)
    return filled


def _find_device(config: TrainConfig, progress: Progress) -> torch.device:
    device = find_device(config.device)
    if config.settings.autocast == "bf16" and not has_bf16(device):
        progress.warning(f"autocast bf16: {device.type} may lack bf16 instructions here, and fp32 is then faster")
    return device


def _check_backbone(config: TrainConfig, backbone: Backbone) -> None:
    """Raise TrainError if the backbone was loaded for another head, or cannot take shots."""
    if backbone.head != config.head:
        raise TrainError(f"{config.method}: needs a backbone loaded for a head of {config.head}, got {backbone.head}")
    if config.n_shots and not backbone.facts.causal:
        raise TrainError(f"shots {config.n_shots}: {backbone.facts.name} is a masked model; use a causal one")


def _make_prompt_model(
    config: TrainConfig, method: Method, verbalizer: Verbalizer, backbone: Backbone, device: torch.device
) -> PromptModel:
    """Make the backbone trainable as the method requires, and move it to the device."""
    pooling = choose_pooling(backbone.head, config.pool, backbone.facts)
    torch.manual_seed(config.settings.seed)  # for the initial weights of LoRA
    trainable = TrainableBackbone.of(backbone, method.backbone_training, lora_rank=config.settings.lora_rank)
    return PromptModel(
        method=method,
        encoder=config.encoder or method.encoders[0],
        init=config.init,
        verbalizer=verbalizer,
        trainable=trainable,
        classifier=trainable.backbone.classifier(pooling).to(device),
        max_length=choose_max_length(config.max_length, backbone.facts),
        truncate=config.truncate,
        batch_size=config.settings.batch_size,
    )


def _choose_shots(rows: Sequence[Row], verbalizer: Verbalizer, count: int, seed: int) -> list[Shot]:
    """Choose rows at random, with the labels in turn.

    Raises:
        DataError: there are fewer than `count` rows.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    groups: dict[str | None, list[Row]] = {label: [] for label in verbalizer.labels}
    for row in shuffled:
        groups[row.label].append(row)
    turns = [row for turn in itertools.zip_longest(*groups.values()) for row in turn if row is not None]
    words = dict(zip(verbalizer.labels, verbalizer.words or (), strict=False))
    if len(turns) < count:
        raise DataError(f"shots {count}: got {len(turns)} training rows; use fewer shots, or give more rows")
    return [Shot(text=row.text, text_b=row.text_b, answer=words[row.label or ""][0]) for row in turns[:count]]


def _check_single_tokens(data: DataSplits, labels: Sequence[str]) -> None:
    """Raise DataError if a label is not one token of the vocabulary (with the count and the first place)."""
    known, rows = set(labels), list(itertools.chain(*data.parts))
    several = [row for row in rows if row.label not in known]
    if several:
        raise DataError(
            f"{several[0].where}: label {several[0].label!r} is not one token here, nor are those of "
            f"{len(several) - 1} more of {len(rows)} rows; leave them out"
        )


def _check_rows(plan: Plan, declared: Sequence[str], progress: Progress) -> None:
    """Raise DataError for rows that `strict` forbids, and warn of other problems of the rows."""
    config, pairs = plan.config, plan.data.pairs(plan.prompt_model.verbalizer.labels)
    rows = list(itertools.chain(*pairs.parts))
    encodings = [*plan.train.encodings, *plan.dev.encodings, *plan.test.encodings]
    truncated = [row for row, encoding in zip(rows, encodings, strict=True) if encoding.overflowing]
    if config.strict and truncated:
        raise DataError(
            f"data: {len(truncated)} of {len(rows)} rows are longer than {plan.compiled.max_length} tokens with the "
            f"template, the first at {truncated[0].where}; shorten them, raise --max-length, or leave out --strict"
        )
    if (config.calibrate or config.abstain is not None) and len(plan.data.dev) < FEW_DEV_ROWS:
        progress.warning(
            f"{len(plan.data.dev)} dev rows are few to estimate probabilities from (need {FEW_DEV_ROWS}); "
            "give more with --dev"
        )
    tokenizer_json = plan.prompt_model.backbone.tokenizer_json
    for sentence in find_data_problems(pairs, declared, plan.template, tokenizer_json, encodings):
        progress.warning(sentence)
