"""What was trained, on what: config.json of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.toolkit.methods import EncoderKind, Head, Method, MethodName
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.template.compile import CompiledTemplate, Truncate, compile_template
from ptexport.toolkit.template.template import Shot, Template

Stopped = Literal["interrupted", "diverged"]
"""Why a training ended early with something to show: Ctrl-C, or a loss that is not a number."""


FORMAT = 2
_FORMAT_1_FIELDS = {
    "tune_backbone": "train_backbone",
    "tuned": "trained_backbone",
    "open_answers": "open_vocabulary",
    "read": "pooling",
    "examples": "shots",
}


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    Attributes:
        lr: peak learning rate of AdamW, of virtual tokens and a linear head; None: the method's own, or it has neither.
        backbone_lr: likewise, of the language model.
        lora_rank: rank of the updates that LoRA trains; None: 8.
        balance: whether labels count alike, whatever their rows.
        epochs: most passes over the training rows.
        batch_size: rows run through the model at once.
        accumulate: such batches per step, whose gradients are those of one batch of all their rows.
        autocast: what training steps compute in where that is safe, while weights stay fp32; None: fp32 throughout.
            Scoring, and with it the choice of the epoch, is in fp32.
        cache_mb: most memory for states of a frozen causal model that no training changes, in MiB (2^20 bytes).
        patience: epochs without a better dev accuracy, or the same with a lower dev loss, before stopping.
        warmup: share of all steps over which the rate rises; it falls linearly to 0 over the rest.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        seed: of the split, the order of rows and the first values of weights.
    """

    lr: float | None = None
    backbone_lr: float | None = None
    lora_rank: int | None = None
    balance: bool = False
    epochs: int = 10
    batch_size: int = 8
    accumulate: int = 1
    autocast: Literal["bf16"] | None = None
    cache_mb: int = 1024
    patience: int = 4
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


class Imported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run was made of that was trained elsewhere.

    Attributes:
        folder: as given.
        peft_type: PEFT's name of the method.
        task_type: PEFT's name of the task.
        weights_sha256: of the adapter's weights file.
        max_abs_diff: largest difference of a logit between the run and PEFT's own forward pass, over `rows` rows.
        rows: compared, one at a time and unpadded.
        versions: of what it was imported with.
    """

    folder: str
    peft_type: str
    task_type: str
    weights_sha256: str
    max_abs_diff: float
    rows: int
    versions: dict[str, str]


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained, on what.

    Attributes:
        format: version of the run folder.
        method: see `ptexport.toolkit.methods`.
        imported: where it came from, if it was trained elsewhere.
        train_backbone: whether the language model was trained with the virtual tokens.
        model: as given to `--model`, to load the backbone again.
        revision: commit on the hub, to load the same again; None for a folder or alias.
        backbone: facts about it, as it was before.
        trained_backbone: facts about it after training, if it was trained; the run's `BACKBONE` folder has its weights.
        template: as the user wrote it.
        labels: in the order of the logits.
        label_words: words per label; None for a linear head.
        open_vocabulary: whether the labels are the words of the vocabulary.
        pooling: position whose state becomes logits.
        encoder: the prompt encoder; None: not known.
        init: what plain rows started from; None: not known.
        shots: of `manual`, texts and answers that stand before the template, first to last.
        prior_correction: of `manual`, whether what it answers to no content is taken from its logits.
        n_prefix: positions of trained keys and values before everything.
        max_length: most tokens in one row.
        truncate: which text of a pair is cut.
        calibrate: whether a temperature was fitted on dev.
        abstain: share of the answered dev rows that had to be right; None: every row is answered.
        n_folded: leading template tokens that `arrays.prefix_kv` holds.
        training: rates and sizes; None: not known.
    """

    format: int = FORMAT
    method: MethodName
    imported: Imported | None = None
    train_backbone: bool
    model: str
    revision: str | None
    backbone: BackboneFacts
    trained_backbone: BackboneFacts | None = None
    template: str
    labels: list[str]
    label_words: list[list[str]] | None
    open_vocabulary: bool
    pooling: Pooling
    encoder: EncoderKind | None
    init: Literal["random", "words"] | None
    shots: list[Shot]
    prior_correction: bool
    n_prefix: int
    max_length: int
    truncate: Truncate
    calibrate: bool
    abstain: float | None
    n_folded: int
    training: TrainSettings | None

    @classmethod
    def from_json(cls, data: bytes) -> "RunConfig":
        """Decode `config.json` of this format or the one before it.

        Raises:
            msgspec.DecodeError: it is not such a file.
        """
        record = msgspec.json.decode(data)
        if isinstance(record, dict) and record.get("format") == 1:
            record = {_FORMAT_1_FIELDS.get(name, name): value for name, value in record.items()} | {"format": FORMAT}
        return msgspec.convert(record, cls)

    @property
    def facts(self) -> BackboneFacts:
        """Facts about the backbone that the run's arrays are for."""
        return self.trained_backbone or self.backbone

    @property
    def n_prompt_embeddings(self) -> int:
        """Virtual tokens that have a row past the embedding table."""
        return Template.parse(self.template).n_prompt - self.n_prefix

    def compile(self, tokenizer_json: str) -> CompiledTemplate:
        """Compile the template with the backbone's tokenizer."""
        return compile_template(
            Template.parse(self.template).with_shots(self.shots),
            self.backbone,
            tokenizer_json,
            mask_slot=self.pooling == "mask",
            max_length=self.max_length,
            n_prefix=self.n_prefix,
            truncate=self.truncate,
        )


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
        train_backbone: train the language model together with the virtual tokens of p-tuning.
        template: with virtual tokens, if the method has any.
        labels: `name=word|word,…` or a file; names alone for a linear head; `vocab` for every word of the vocabulary.
        head: label words, or a linear layer; None: the method's usual one.
        pool: what a linear head reads on a masked model; None: the mean.
        encoder: the prompt encoder; None: the method's usual one.
        init: what virtual tokens without an encoder start from: noise of the embeddings' size (keys and values: those
            of any words), or the label words'.
        n_shots: of `manual` on a causal model, how many training rows stand before the template with their answers.
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
    train_backbone: bool = False
    head: Head | None = None
    pool: Literal["mean", "first"] | None = None
    encoder: EncoderKind | None = None
    init: Literal["random", "words"] = "random"
    n_shots: int = 0
    prior_correction: bool = False
    max_length: int | None = None
    truncate: Truncate = "longest"
    strict: bool = False
    calibrate: bool = False
    abstain: float | None = None
    manual: Sequence[str] = field(default=())
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is trained, settled.

    Attributes:
        method: what its virtual tokens are and what is tuned.
        encoder: the prompt encoder.
        head: label words, or a linear layer.
    """

    method: Method
    encoder: EncoderKind
    head: Head
