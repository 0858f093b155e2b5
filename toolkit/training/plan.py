"""Inputs -> a Plan: loaded parts that fit together. Reports what does not fit before training."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptexport.runtime.errors import DataError, TrainError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data.splits import DataSplits
from ptexport.toolkit.methods import Method
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.device import find_device, has_bf16
from ptexport.toolkit.prompt.prompt_model import PromptModel, choose_max_length, choose_pooling
from ptexport.toolkit.prompt.scoring import EncodedRows, Scorer
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.config import RunConfig, TrainConfig
from ptexport.toolkit.template.compile import CompiledTemplate
from ptexport.toolkit.template.template import Shot
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.training.data_checks import find_data_problems
from ptexport.toolkit.training.inputs import Inputs

FEW_DEV_ROWS = 100
"""Fewer rows cannot tell a probability of 0.8 from 0.9: the standard error of a share is 0.04 at 100 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose parts fit together.

    Attributes:
        inputs: the rows and the complete configuration.
        shots: labelled rows before the template.
        prompt_model: template and labels on the backbone.
        compiled: the template, compiled for the backbone.
        scorer: computes logits as the bundle will.
        train: training rows, encoded for the scorer.
        dev: dev rows, encoded for the scorer.
        test: test rows, encoded for the scorer.
    """

    inputs: Inputs
    shots: list[Shot]
    prompt_model: PromptModel
    compiled: CompiledTemplate
    scorer: Scorer
    train: EncodedRows
    dev: EncodedRows
    test: EncodedRows

    @property
    def run_config(self) -> RunConfig:
        """The configuration of the run, before the backbone is trained."""
        return RunConfig.of(
            self.inputs.config,
            backbone=self.prompt_model.backbone.facts,
            commit=self.prompt_model.backbone.commit,
            verbalizer=self.prompt_model.verbalizer,
            compiled=self.compiled,
            pooling=self.prompt_model.classifier.pooling,
            n_folded=len(self.scorer.folded_ids),
            shots=self.shots,
        )


def make_plan(inputs: Inputs, progress: Progress, backbone: Backbone | None) -> Plan:
    """Load the model and check that it fits the inputs.

    Args:
        inputs: the rows and the complete configuration.
        progress: receives stages and warnings about rows.
        backbone: the backbone of the configuration, if it is loaded already.

    Raises:
        PtexportError: parts do not fit together; see `ptexport.runtime.errors`.
    """
    config, template, data, verbalizer = inputs.config, inputs.template, inputs.data, inputs.verbalizer
    device = _find_device(config, progress)
    backbone = backbone or load_backbone_for(inputs, progress)
    _check_backbone(config, backbone)
    if verbalizer.open_vocabulary:
        _check_single_tokens(data, verbalizer.labels)
    prompt_model = _make_prompt_model(config, inputs.method, verbalizer, backbone, device)
    shots = _choose_shots(data.pairs(verbalizer.labels).train, verbalizer, config.n_shots, config.settings.seed)
    n_prefix = template.n_prompt if inputs.method.virtual_token == "prefix_kv" else 0
    compiled = prompt_model.compile(template.with_shots(shots), n_prefix=n_prefix)
    scorer = prompt_model.scorer(compiled)
    train, dev, test = (EncodedRows.encode(rows, scorer.encoder, verbalizer.labels) for rows in data.parts)
    plan = Plan(
        inputs=inputs,
        shots=shots,
        prompt_model=prompt_model,
        compiled=compiled,
        scorer=scorer,
        train=train,
        dev=dev,
        test=test,
    )
    _check_rows(plan, progress)
    return plan


def load_backbone_for(inputs: Inputs, progress: Progress) -> Backbone:
    """Load the backbone of a training.

    Raises:
        ModelError: the backbone cannot be loaded.
    """
    assert inputs.config.head is not None, "it is filled in"
    progress.stage("loading the model")
    with distributed.rank_0_first():
        return load_backbone(inputs.checkpoint, inputs.config.head)


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


def _check_rows(plan: Plan, progress: Progress) -> None:
    """Raise DataError for rows that `strict` forbids, and warn of other problems of the rows."""
    config, verbalizer = plan.inputs.config, plan.prompt_model.verbalizer
    pairs = plan.inputs.data.pairs(verbalizer.labels)
    rows = list(itertools.chain(*pairs.parts))
    encodings = [*plan.train.encodings, *plan.dev.encodings, *plan.test.encodings]
    truncated = [row for row, encoding in zip(rows, encodings, strict=True) if encoding.overflowing]
    if config.strict and truncated:
        raise DataError(
            f"data: {len(truncated)} of {len(rows)} rows are longer than {plan.compiled.max_length} tokens with the "
            f"template, the first at {truncated[0].where}; shorten them, raise --max-length, or leave out --strict"
        )
    if (config.calibrate or config.abstain is not None) and len(plan.inputs.data.dev) < FEW_DEV_ROWS:
        progress.warning(
            f"{len(plan.inputs.data.dev)} dev rows are few to estimate probabilities from (need {FEW_DEV_ROWS}); "
            "give more with --dev"
        )
    tokenizer_json = plan.prompt_model.backbone.tokenizer_json
    declared = () if verbalizer.open_vocabulary else verbalizer.labels
    for sentence in find_data_problems(pairs, declared, plan.inputs.template, tokenizer_json, encodings):
        progress.warning(sentence)
