"""The run folder: what was trained and how; knows files, nothing of torch.

config.json          RunConfig
metrics.json         Metrics, or null if it was trained elsewhere
weights.safetensors  what was trained (`prompt.*`), and what it bakes to (`baked.*`), so that export needs no encoder
tokenizer.json       the backbone's own
check_rows.jsonl     rows for parity
backbone/            the language model in Hugging Face's layout, if it was trained too
resume.safetensors   of a training that was stopped: where it was
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ptexport.runtime.errors import DataError, RunError, reason
from ptexport.runtime.manifest import Read
from ptexport.runtime.rows import Row, read_rows
from ptexport.toolkit.facts import BackboneFacts, sha256_text
from ptexport.toolkit.methods import EncoderKind, MethodName
from ptexport.toolkit.template import Example, Template
from ptexport.toolkit.tokenizer import CompiledTemplate, Truncate, compile_template

CONFIG = "config.json"
METRICS = "metrics.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
CHECK_ROWS = "check_rows.jsonl"
FILES = (CONFIG, METRICS, WEIGHTS, TOKENIZER, CHECK_ROWS)
BACKBONE = "backbone"  # only in a run that trained it
RESUME = "resume.safetensors"  # only in a run that was stopped; see resume.py
MAX_CHECK_ROWS = 256
Stopped = Literal["interrupted", "diverged"]
"""Why a training ended early with something to show: Ctrl-C, or a loss that is not a number."""
FORMAT = 1


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
        tune_backbone: whether the language model was trained with the virtual tokens.
        model: as given to `--model`, to load the backbone again.
        revision: commit on the hub, to load the same again; None for a folder or alias.
        backbone: facts about it, as it was before.
        tuned: facts about it as it was after, if it was trained; its weights are in the run's own `BACKBONE` then.
        template: as the user wrote it.
        labels: in the order of the logits.
        label_words: words per label; None for a linear head.
        open_answers: whether the labels are the words of the vocabulary.
        read: position whose state becomes logits.
        encoder: the prompt encoder; None: not known.
        init: what plain rows started from; None: not known.
        examples: of `manual`, texts and answers that stand before the template, first to last.
        prior_correction: of `manual`, whether what it answers to no content is taken from its logits.
        n_prefix: positions of trained keys and values before everything.
        max_length: most tokens in one row.
        truncate: which text of a pair is cut.
        calibrate: whether a temperature was fitted on dev.
        abstain: share of the answered dev rows that had to be right; None: every row is answered.
        n_folded: leading template tokens that `baked.leading_states` holds.
        training: rates and sizes; None: not known.
    """

    format: int = FORMAT
    method: MethodName
    imported: Imported | None = None
    tune_backbone: bool
    model: str
    revision: str | None
    backbone: BackboneFacts
    tuned: BackboneFacts | None = None
    template: str
    labels: list[str]
    label_words: list[list[str]] | None
    open_answers: bool
    read: Read
    encoder: EncoderKind | None
    init: Literal["random", "words"] | None
    examples: list[Example]
    prior_correction: bool
    n_prefix: int
    max_length: int
    truncate: Truncate
    calibrate: bool
    abstain: float | None
    n_folded: int
    training: TrainSettings | None

    @property
    def facts(self) -> BackboneFacts:
        """Facts about the backbone that the run's arrays are for."""
        return self.tuned or self.backbone

    @property
    def n_rows(self) -> int:
        """Virtual tokens that have a row past the embedding table."""
        return Template.parse(self.template).n_prompt - self.n_prefix

    def compile(self, tokenizer_json: str) -> CompiledTemplate:
        """Compile the template with the backbone's tokenizer."""
        return compile_template(
            Template.parse(self.template).with_examples(self.examples),
            self.backbone,
            tokenizer_json,
            mask_slot=self.read == "mask",
            max_length=self.max_length,
            n_prefix=self.n_prefix,
            truncate=self.truncate,
        )


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. Accuracies are shares, 0 to 1.

    Attributes:
        method: as in the config.
        model: as in the config.
        n_train: rows learned from.
        n_dev: rows that chose the epoch.
        n_test: rows measured on.
        trainable_parameters: floats that the optimizer changed.
        epochs: passes over the training rows.
        stopped: why it ended early, with the best epoch so far; None: it did not, or dev accuracy no longer rose.
        dev_accuracy: of the epoch kept.
        test_accuracy: of the same.
        temperature: that logits are divided by; the label rows in `baked` are.
        abstain_below: probability below which no label is given; None: there is always one.
        log_prior: taken from the logits, by label; None: nothing is.
        found_words: of `search`, the words it found, in order; None: it did not look for any.
        manual_accuracy: test accuracy of hand-written templates, by template.
        train_seconds: wall time of the loop alone.
        seed: as in the config.
        data_sha256: of all rows, texts and labels.
        versions: of what it ran on.
    """

    method: str
    model: str
    n_train: int
    n_dev: int
    n_test: int
    trainable_parameters: int
    epochs: int
    stopped: Stopped | None
    dev_accuracy: float
    test_accuracy: float
    temperature: float
    abstain_below: float | None
    log_prior: list[float] | None
    found_words: list[str] | None
    manual_accuracy: dict[str, float]
    train_seconds: float
    seed: int
    data_sha256: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """What a task brings to the graph, all float32.

    Attributes:
        prompt_rows: [p, e], rows of ids from `vocab` on; p is at least 1.
        label_rows: [c, h].
        label_bias: [c].
        leading_states: [l, 2, 1, k, n, d], keys and values of the prefix or the folded leading tokens; None on a masked
            model without a prefix.
    """

    prompt_rows: NDArray[np.float32]
    label_rows: NDArray[np.float32]
    label_bias: NDArray[np.float32]
    leading_states: NDArray[np.float32] | None

    @property
    def leading(self) -> bool:
        """Whether keys and values stand before the rows."""
        return self.leading_states is not None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays there are, by the graph's input name."""
        named = {name: getattr(self, name) for name in ("prompt_rows", "label_rows", "label_bias", "leading_states")}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished training, here or elsewhere.

    Attributes:
        config: what was trained, on what.
        metrics: what came out; None: it was trained elsewhere, so nobody measured it here.
        trained: the trained parameters, by name.
        baked: what they come to.
        tokenizer_json: the backbone's own tokenizer.
        check_rows: rows for parity.
    """

    config: RunConfig
    metrics: Metrics | None
    trained: dict[str, NDArray[np.float32]]
    baked: Baked
    tokenizer_json: str
    check_rows: list[Row]

    @property
    def temperature(self) -> float:
        """What logits are divided by; the label rows in `baked` are."""
        return 1.0 if self.metrics is None else self.metrics.temperature

    @property
    def versions(self) -> dict[str, str]:
        """Of what it was trained, or imported, with."""
        made = self.metrics or self.config.imported
        assert made is not None, "a run is trained or imported"
        return made.versions

    def write(self, folder: Path) -> None:
        """Write all files into a folder, which holds `BACKBONE` already if that was trained."""
        (folder / CONFIG).write_bytes(_pretty(self.config))
        (folder / METRICS).write_bytes(_pretty(self.metrics))
        arrays = {f"prompt.{name}": array for name, array in self.trained.items()}
        arrays |= {f"baked.{name}": array for name, array in self.baked.arrays().items()}
        (folder / WEIGHTS).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
        (folder / TOKENIZER).write_text(self.tokenizer_json, encoding="utf-8")
        lines = (json.dumps(_record(row), ensure_ascii=False) + "\n" for row in self.check_rows)
        (folder / CHECK_ROWS).write_text("".join(lines), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run.

        Raises:
            RunError: a file is missing, or is not what it should be.
        """
        for name in FILES:
            if not (folder / name).is_file():
                best = f"; of a sweep, {folder / 'best'}" if (folder / "best").is_dir() else ""
                raise RunError(f"{folder / name}: missing; need a run folder made by 'ptexport train'{best}")
        try:
            config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=RunConfig)
            metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=Metrics | None)
            tokenizer_json = (folder / TOKENIZER).read_text(encoding="utf-8")
            arrays = load((folder / WEIGHTS).read_bytes())
            check_rows = list(read_rows(folder / CHECK_ROWS))
        except OSError as e:
            raise RunError(f"{e.filename}: cannot be read ({e.strerror}); check its permissions") from e
        except (msgspec.DecodeError, SafetensorError, DataError, UnicodeDecodeError) as e:
            raise RunError(f"{folder}: not a run this version can read ({reason(e)}); train again") from e
        if (metrics is None) != (config.imported is not None):
            raise RunError(f"{folder / METRICS}: does not go with {CONFIG}; train or import again")
        if config.format != FORMAT:
            raise RunError(f"{folder / CONFIG}: got format {config.format}, need {FORMAT}; train again")
        if sha256_text(tokenizer_json) != config.backbone.tokenizer_sha256:
            raise RunError(f"{folder / TOKENIZER}: not the tokenizer it was trained with; train again")
        baked = {name.removeprefix("baked."): array for name, array in arrays.items() if name.startswith("baked.")}
        if set(baked) - {"leading_states"} != {"prompt_rows", "label_rows", "label_bias"}:
            raise RunError(
                f"{folder / WEIGHTS}: holds {sorted(arrays)}, need baked.prompt_rows and others; train again"
            )
        return cls(
            config=config,
            metrics=metrics,
            trained={n.removeprefix("prompt."): a for n, a in arrays.items() if n.startswith("prompt.")},
            baked=Baked(leading_states=baked.pop("leading_states", None), **baked),
            tokenizer_json=tokenizer_json,
            check_rows=check_rows,
        )


def _pretty(value: msgspec.Struct | None) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _record(row: Row) -> dict[str, object]:
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices, "label": row.label}
    return {name: value for name, value in columns.items() if value is not None}
