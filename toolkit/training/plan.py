"""A training as asked for -> a Plan: parts that fit together, what does not refused before training; trains nothing."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from ptexport.runtime.errors import DataError, TrainError
from ptexport.runtime.rows import Row
from ptexport.toolkit.data.splits import Data, load_data
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import find_checkpoint
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.prompt.device import find_device, has_bf16
from ptexport.toolkit.prompt.prompt_model import PromptModel
from ptexport.toolkit.prompt.scoring import EncodedRows, Scorer
from ptexport.toolkit.run.config import Choice, RunConfig, TrainConfig
from ptexport.toolkit.template.compile import CompiledTemplate
from ptexport.toolkit.template.template import Shot, Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.config import check_multiple_choice, check_templates, settle
from ptexport.toolkit.training.data_checks import oddities

FEW_DEV_ROWS = 100
"""Fewer cannot tell a probability of 0.8 from one of 0.9: the standard error of a share is 0.04 at 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose parts fit together.

    Attributes:
        config: as asked for, its rates chosen.
        template: the one trained.
        shots: rows that stand before it, with their answers.
        prompt_model: template, verbalizer and backbone.
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
    shots: list[Shot]
    prompt_model: PromptModel
    compiled: CompiledTemplate
    scorer: Scorer
    data: Data
    learn: EncodedRows
    dev: EncodedRows
    test: EncodedRows
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
        check_multiple_choice(config, verbalizer)
    device = find_device(config.device)
    if config.settings.autocast == "bf16" and not has_bf16(device):
        progress.warning(f"autocast bf16: {device.type} here may not compute in bf16, and then fp32 is quicker")
    seed = config.settings.seed
    declared = None if verbalizer.open_vocabulary else verbalizer.labels
    data = load_data(config.data, dev=config.dev, test=config.test, labels=declared, fields=template.fields, seed=seed)
    backbone = backbone or load_backbone_for(config, progress)
    _check_backbone(config, choice, backbone)
    verbalizer = verbalizer.filled(WordTokenizer(backbone.tokenizer_json), spaced=template.answer_spaced)
    labels = verbalizer.labels
    if verbalizer.open_vocabulary:
        _check_single(data, labels)
    prompt_model = PromptModel.prepare(config, choice, verbalizer, backbone, device)
    pairs = data.pairs(labels)
    shots = _choose_shots(pairs.train, verbalizer, config.n_shots, seed)
    n_prefix = template.n_prompt if choice.method.virtual_token == "prefix_kv" else 0
    compiled = prompt_model.compile(template.with_shots(shots), n_prefix=n_prefix)
    scorer = prompt_model.scorer(compiled)
    learn, dev, test = (EncodedRows.encode(part, scorer.encoder, labels) for part in (data.train, data.dev, data.test))
    encodings = [*learn.encodings, *dev.encodings, *test.encodings]
    if config.strict:
        _check_lengths([*pairs.train, *pairs.dev, *pairs.test], encodings, compiled.max_length)
    if (config.calibrate or config.abstain is not None) and len(data.dev) < FEW_DEV_ROWS:
        progress.warning(f"{len(data.dev)} dev rows say little of how sure answers may be; give more with --dev")
    for sentence in oddities(pairs, declared or (), template, prompt_model.backbone.tokenizer_json, encodings):
        progress.warning(sentence)
    return Plan(
        config=config,
        template=template,
        shots=shots,
        prompt_model=prompt_model,
        compiled=compiled,
        scorer=scorer,
        data=data,
        learn=learn,
        dev=dev,
        test=test,
        manual=manual,
    )


def _check_backbone(config: TrainConfig, choice: Choice, backbone: Backbone) -> None:
    """Refuse a backbone that was loaded for something else.

    Raises:
        TrainError: it has another head, or no words can stand before its template.
    """
    if backbone.head != choice.head:
        raise TrainError(f"{config.method}: needs a backbone loaded for a head of {choice.head}, got {backbone.head}")
    if config.n_shots and not backbone.facts.causal:
        raise TrainError(f"shots {config.n_shots}: {backbone.facts.name} is a masked model; use a causal one")


def _check_lengths(rows: Sequence[Row], encodings: Sequence[Encoding], max_length: int) -> None:
    """Refuse rows that are cut.

    Raises:
        DataError: some are (says how many, and where the first is).
    """
    cut = [row for row, encoding in zip(rows, encodings, strict=True) if encoding.overflowing]
    if cut:
        raise DataError(
            f"data: {len(cut)} of {len(rows)} rows are longer than {max_length} tokens with the template, the first at "
            f"{cut[0].where}; shorten them, raise --max-length, or leave out --strict"
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
    with distributed.first_then_others():
        return load_backbone(find_checkpoint(config.model, revision=config.revision, stage=progress.stage), choice.head)


def _choose_shots(rows: Sequence[Row], verbalizer: Verbalizer, count: int, seed: int) -> list[Shot]:
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
    return [Shot(text=row.text, text_b=row.text_b, answer=words[row.label or ""][0]) for row in turns[:count]]


def run_config(plan: Plan) -> RunConfig:
    """Put into a run what it came from."""
    config, prompt_model = plan.config, plan.prompt_model
    words = prompt_model.verbalizer.words
    return RunConfig(
        method=config.method,
        train_backbone=config.train_backbone,
        model=config.model,
        revision=prompt_model.backbone.commit,
        backbone=prompt_model.backbone.facts,
        template=config.template,
        labels=list(prompt_model.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        open_vocabulary=prompt_model.verbalizer.open_vocabulary,
        pooling=prompt_model.classifier.pooling,
        encoder=prompt_model.choice.encoder,
        init=config.init,
        shots=plan.shots,
        prior_correction=config.prior_correction,
        n_prefix=plan.compiled.n_prefix,
        max_length=plan.compiled.max_length,
        truncate=config.truncate,
        calibrate=config.calibrate,
        abstain=config.abstain,
        n_folded=len(plan.scorer.leading_ids),
        training=plan.config.settings,
    )
