"""A training configuration -> Inputs: rows, labels and a complete configuration. Needs no PyTorch.

Whatever can be refused without loading the model is refused here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ptexport.runtime.bundle.manifest import TextField
from ptexport.runtime.errors import DataError, ModelError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data import cities
from ptexport.toolkit.data.sources import CITIES, read_splits
from ptexport.toolkit.data.splits import DataSplits, count_labels, split_rows
from ptexport.toolkit.methods import METHODS, Head, Method
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt import distributed
from ptexport.toolkit.run.config import TrainConfig
from ptexport.toolkit.run.run import METRICS, POSSIBLE_FILES, RESUME
from ptexport.toolkit.store.folders import check_kept
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer
from ptexport.toolkit.training.config import check_config, check_multiple_choice, check_templates, fill_in
from ptexport.toolkit.training.defaults import choose_head, choose_template

_MOST_LABELS_SAID = 20
_CHOICE = "right", "wrong"  # labels of a choice, unless others are given

Splits = Mapping[str, list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a training needs besides the loaded model.

    Attributes:
        config: the configuration, complete.
        method: its method.
        template: the template to train.
        manual: hand-written templates, by their text.
        verbalizer: labels and label words; an open vocabulary is filled in.
        checkpoint: files of the model.
        data: all rows.
    """

    config: TrainConfig
    method: Method
    template: Template
    manual: dict[str, Template]
    verbalizer: Verbalizer
    checkpoint: Checkpoint
    data: DataSplits


def read_inputs(config: TrainConfig, progress: Progress, splits: Splits | None = None) -> Inputs:
    """Read the rows, find the files of the model, and choose what the configuration leaves open.

    Args:
        config: all options of the training.
        progress: receives stages and choices.
        splits: the rows of the configuration, if they are read already.

    Raises:
        PtexportError: parts do not fit together; see `ptexport.runtime.errors`.
    """
    method = check_config(config)
    splits = splits or read_all(config, progress)
    names, read_off = _label_names(config, splits["train"], progress)
    fields = Template.parse(config.template).fields if config.template else _fields(splits["train"][0])
    data = split_rows(splits, source=config.data, labels=names, fields=fields, seed=config.settings.seed)
    with distributed.rank_0_first():
        checkpoint = find_checkpoint(config.model, revision=config.revision, stage=progress.stage)
    lm_head = checkpoint.lm_head
    words = None if lm_head is None else WordTokenizer(checkpoint.read_tokenizer())
    head = config.head
    if head is None:
        head, reason = choose_head(method, lm_head, names if read_off else None, words)
        progress.choice(f"head {head}: {reason}")
    _check_head(config, head, checkpoint)
    template = config.template or choose_template(config.method, method, lm_head, head, fields)
    config = fill_in(config, method, head, template, len(data.train))
    parsed, manual = check_templates(config, method)
    verbalizer = _verbalizer(config, head, names if read_off else None)
    if head == "words":
        words = words or WordTokenizer(checkpoint.read_tokenizer())
        verbalizer = verbalizer.filled(words, spaced=parsed.answer_spaced)
        verbalizer.word_ids(words, spaced=parsed.answer_spaced, unknown=None)
    return Inputs(
        config=config,
        method=method,
        template=parsed,
        manual=manual,
        verbalizer=verbalizer,
        checkpoint=checkpoint,
        data=data,
    )


def check_out(out: Path, *, resume: bool, force: bool) -> None:
    """Check that a run can be written, before anything is read.

    Args:
        out: folder of the run.
        resume: whether an interrupted training is resumed; a finished one is fine then.
        force: whether an existing folder is replaced.

    Raises:
        OutputError: the folder exists, or a training into it was interrupted.
    """
    if not (resume and is_finished(out)):
        check_kept(out, resume=resume, force=force, files=POSSIBLE_FILES, state=RESUME)


def is_finished(out: Path) -> bool:
    """Return whether a folder holds a run that ended by itself."""
    states = [folder / RESUME for folder in (out, out.with_name(out.name + ".partial"))]
    return (out / METRICS).is_file() and not any(path.exists() for path in states)


def read_all(config: TrainConfig, progress: Progress) -> Splits:
    """Read the rows of a configuration by split: "train", and "dev" and "test" where they are given.

    Raises:
        DataError: a file cannot be read, or a row is not as described (names the line).
    """
    if config.data == CITIES and config.columns != Columns():
        raise DataError("data cities: has the columns text and label only; leave out the options about columns")
    splits = read_splits(config.data, config.columns, progress.choice)
    for name, path in (("dev", config.dev), ("test", config.test)):
        if path is not None:
            splits[name] = list(read_rows(Path(path), config.columns))
    return splits


def _label_names(config: TrainConfig, rows: list[Row], progress: Progress) -> tuple[tuple[str, ...] | None, bool]:
    """Return the names of the labels, and whether they were read from the rows, most frequent first.

    The names are None for an open vocabulary.
    """
    if config.labels is not None:
        # Whether the labels fit the head is checked when it is known.
        verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
        if config.template is not None and "choice" in Template.parse(config.template).fields:
            check_multiple_choice(config, verbalizer)
        return None if verbalizer.open_vocabulary else verbalizer.labels, False
    if config.data == CITIES:
        return tuple(cities.labels(linear=True).split(",")), False
    if rows[0].choices is not None:
        check_multiple_choice(config, Verbalizer(labels=_CHOICE, words=None))
        progress.choice(f"labels: {', '.join(_CHOICE)}, of the right choice and of the others")
        return _CHOICE, True
    counts = count_labels(rows, config.data)
    said = [f"{label} ({count} rows)" for label, count in counts.items()][:_MOST_LABELS_SAID]
    progress.choice(f"labels: {', '.join(said)}{', …' * (len(counts) > len(said))}")
    return tuple(counts), True


def _check_head(config: TrainConfig, head: Head, checkpoint: Checkpoint) -> None:
    """Raise ModelError if label words need a language-model head, and the model is known to have none."""
    if head == "words" and checkpoint.lm_head is None and checkpoint.architecture:
        advice = "--head linear" if "linear" in METHODS[config.method].heads else "another model or method"
        raise ModelError(
            f"model {checkpoint.name}: {checkpoint.architecture} has no language-model head, which label words need; "
            f"use {advice}"
        )


def _verbalizer(config: TrainConfig, head: Head, names: tuple[str, ...] | None) -> Verbalizer:
    linear = head == "linear"
    if names is not None:
        return Verbalizer(labels=names, words=None if linear else ((),) * len(names))
    return Verbalizer.parse(config.labels or cities.labels(linear=linear), linear=linear)


def _fields(row: Row) -> list[TextField]:
    """Return the names of the texts of a row."""
    if row.choices is not None:
        return ["text", "choice"]
    return ["text"] if row.text_b is None else ["text", "text_b"]
