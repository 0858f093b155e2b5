"""The options of a training, and `config.json` of a run: what was trained, on what."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from ptexport.runtime.bundle.manifest import Pooling, TextField
from ptexport.runtime.rows.columns import Columns
from ptexport.toolkit.methods import EncoderKind, Head, MethodName
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.template.compile import CompiledTemplate, Truncate, compile_template
from ptexport.toolkit.template.template import Shot, Template
from ptexport.toolkit.template.verbalizer import Verbalizer

Stopped = Literal["interrupted", "diverged"]
"""Why a training stopped early and kept its best epoch: Ctrl-C, or a loss that is not finite."""

FORMAT = 2
_FORMAT_1_FIELDS = {
    "tune_backbone": "train_backbone",
    "tuned": "trained_backbone",
    "open_answers": "open_vocabulary",
    "read": "pooling",
    "examples": "shots",
    "prior_correction": "contextual_calibration",
    "training": "settings",
}


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learning rates, sizes and the seed of a training.

    Attributes:
        lr: peak learning rate (AdamW) of virtual tokens and a linear head; None: the default of the method, or the
            method trains neither.
        backbone_lr: peak learning rate of the language model; None: the default of the method, or it is frozen.
        lora_rank: rank of the LoRA updates; None: 8.
        balance: whether the loss weighs labels inversely to their number of rows.
        epochs: maximum number of passes over the training rows; None: by their number.
        batch_size: rows per forward pass.
        accumulate: batches per optimizer step; the gradients equal those of one batch with all their rows.
        autocast: precision of training steps where torch considers it safe; weights stay fp32. None: fp32 throughout.
            Scoring, and therefore the choice of the epoch, is always fp32.
        cache_mb: maximum memory for cached keys and values of a frozen causal model, in MiB (2^20 bytes).
        patience: epochs without a higher dev accuracy (or an equal one with a lower dev loss) before stopping; None: by
            the number of epochs.
        warmup: share of all steps over which the learning rate rises linearly; it then falls linearly to 0.
        weight_decay: weight decay of AdamW.
        clip: maximum gradient norm.
        seed: seed of the split, the order of rows and the initial weights.
    """

    lr: float | None = None
    backbone_lr: float | None = None
    lora_rank: int | None = None
    balance: bool = False
    epochs: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    autocast: Literal["bf16"] | None = None
    cache_mb: int = 1024
    patience: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a training that its run records too.

    Attributes:
        method: see `ptexport.toolkit.methods`.
        train_backbone: whether the language model is trained together with the virtual tokens of p-tuning.
        model: `smollm2`, `minilm`, a folder or a hub name.
        revision: branch, tag or commit of a model on the hub; a run records the commit. None for a folder or alias.
        template: the template, with virtual tokens if the method trains any; None: by model, head and texts.
        columns: which columns of files become the parts of a row.
        encoder: the prompt encoder; None: the default of the method (in an imported run: unknown).
        init: initial values of virtual tokens without an encoder: "random" (noise with the standard deviation of the
            embeddings; for keys and values: those of random tokens), or "words" (the label words). None: unknown.
        contextual_calibration: with `manual`, whether the logits for content-free inputs are subtracted (Zhao et al.
            2021, arXiv:2102.09690).
        max_length: maximum tokens per row; None: 512, or fewer if the backbone takes fewer. A run records the number.
        truncate: which text of a pair is truncated.
        calibrate: whether a temperature is fitted on the dev rows.
        abstain: accuracy that the labelled dev rows must reach, 0 to 1. The bundle gives no label to rows below the
            probability that this takes. None: every row gets a label.
        settings: learning rates, sizes and the seed; None: unknown (an imported run).
    """

    method: MethodName = "p-tuning"
    train_backbone: bool = False
    model: str
    revision: str | None = None
    template: str | None = None
    columns: Columns = Columns()
    encoder: EncoderKind | None = None
    init: Literal["random", "words"] | None = "random"
    contextual_calibration: bool = False
    max_length: int | None = None
    truncate: Truncate = "longest"
    calibrate: bool = False
    abstain: float | None = None
    settings: TrainSettings | None = None


class TrainConfig(TaskOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options of one training.

    Attributes:
        data: a file (see `read_rows`), `hub:NAME[/CONFIG]` or `cities`.
        labels: `name=word|word,…` or a file; names alone for a linear head, or where the name is the word; `vocab` for
            open-vocabulary answers. None: the labels of the training rows.
        dev: a file of dev rows; None: a part of `data`.
        test: a file of test rows; None: a part of `data`.
        head: label words or a linear layer; None: by method, model and labels.
        pool: pooling of a linear head on a masked model; None: the mean.
        n_shots: with `manual` on a causal model, number of labelled training rows placed before the template.
        strict: whether to reject texts longer than `max_length` instead of truncating them.
        manual: hand-written templates to measure with the same label words and test rows.
        device: "auto", or a torch device.
        settings: learning rates, sizes and the seed.
    """

    data: str
    labels: str | None = None
    dev: str | None = None
    test: str | None = None
    head: Head | None = None
    pool: Literal["mean", "first"] | None = None
    n_shots: int = 0
    strict: bool = False
    manual: Sequence[str] = ()
    device: str = "auto"
    settings: TrainSettings


class Imported(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an imported run comes from.

    Attributes:
        folder: the folder of the adapter or classifier, or its name on the hub, as given.
        peft_type: name of the method in PEFT; None: not an adapter, but a classifier of Transformers.
        task_type: name of the task in PEFT; SEQ_CLS for a classifier.
        weights_sha256: sha256 of the weights file of the adapter, or of all those of the classifier by name.
        max_abs_diff: largest difference of a logit between the run and the original model, over `rows` rows.
        rows: number of rows compared, one at a time and unpadded.
        versions: package versions at the time of the import.
    """

    folder: str
    peft_type: str | None
    task_type: str
    weights_sha256: str
    max_abs_diff: float
    rows: int
    versions: dict[str, str]


class RunConfig(TaskOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was trained, on what: `config.json` of a run.

    Attributes:
        format: format version of the run folder.
        template: the template.
        imported: where the run comes from, if ptexport did not train it.
        backbone: facts about the backbone before training.
        trained_backbone: facts about the backbone after training, if it was trained; its weights are in `BACKBONE`.
        labels: labels in the order of the logits.
        label_words: words per label; None for a linear head.
        open_vocabulary: whether the labels are the words of the vocabulary.
        pooling: hidden state that becomes logits.
        shots: with `manual`, the labelled rows before the template, first to last.
        n_prefix: number of positions of trained keys and values before the row.
        max_length: maximum tokens per row.
        n_folded: number of leading template tokens folded into `TaskArrays.prefix_kv`.
    """

    format: int = FORMAT
    template: str
    imported: Imported | None = None
    backbone: BackboneFacts
    trained_backbone: BackboneFacts | None = None
    labels: list[str]
    label_words: list[list[str]] | None
    open_vocabulary: bool
    pooling: Pooling
    shots: list[Shot]
    n_prefix: int
    max_length: int
    n_folded: int

    @classmethod
    def of(
        cls,
        options: TaskOptions,
        *,
        backbone: BackboneFacts,
        commit: str | None,
        verbalizer: Verbalizer,
        compiled: CompiledTemplate,
        pooling: Pooling,
        n_folded: int,
        shots: Sequence[Shot] = (),
        trained_backbone: BackboneFacts | None = None,
        imported: Imported | None = None,
    ) -> "RunConfig":
        """Record options together with what they resulted in.

        Args:
            options: options of the training, or what is known of a training elsewhere.
            backbone: see the class.
            commit: commit of the model on the hub; None for a folder or alias.
            verbalizer: labels and label words.
            compiled: the template, compiled for the backbone.
            pooling: see the class.
            n_folded: see the class.
            shots: see the class.
            trained_backbone: see the class.
            imported: see the class.
        """
        shared = {name: getattr(options, name) for name in TaskOptions.__struct_fields__}
        shared |= {"revision": commit, "max_length": compiled.max_length}
        return cls(
            **shared,
            imported=imported,
            backbone=backbone,
            trained_backbone=trained_backbone,
            labels=list(verbalizer.labels),
            label_words=None if verbalizer.words is None else [list(words) for words in verbalizer.words],
            open_vocabulary=verbalizer.open_vocabulary,
            pooling=pooling,
            shots=list(shots),
            n_prefix=compiled.n_prefix,
            n_folded=n_folded,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "RunConfig":
        """Decode `config.json` of format 1 or 2.

        Raises:
            msgspec.DecodeError: the content does not match the format.
        """
        record = msgspec.json.decode(data)
        if isinstance(record, dict) and record.get("format") == 1:
            record = {_FORMAT_1_FIELDS.get(name, name): value for name, value in record.items()} | {"format": FORMAT}
        return msgspec.convert(record, cls)

    @property
    def facts(self) -> BackboneFacts:
        """Facts about the backbone that the arrays of the run belong to."""
        return self.trained_backbone or self.backbone

    @property
    def fields(self) -> list[TextField]:
        """Texts of a row, in order."""
        return Template.parse(self.template).fields

    @property
    def n_prompt_embeddings(self) -> int:
        """Number of virtual tokens with an embedding past the embedding table."""
        return Template.parse(self.template).n_prompt - self.n_prefix

    def compile(self, tokenizer_json: str) -> CompiledTemplate:
        """Compile the template with the tokenizer of the backbone."""
        return compile_template(
            Template.parse(self.template).with_shots(self.shots),
            self.backbone,
            tokenizer_json,
            mask_slot=self.pooling == "mask",
            max_length=self.max_length,
            n_prefix=self.n_prefix,
            truncate=self.truncate,
        )
