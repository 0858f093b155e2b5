"""A training configuration -> Inputs: rows, labels and a complete configuration. Needs no PyTorch.

Whatever can be refused without loading the model is refused here.
"""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows of a configuration.

    Attributes:
        splits: rows by split: "train", and "dev" and "test" where they are given.
        said: what was said about their files and columns.
    """

    splits: dict[str, list[Row]]
    said: tuple[str, ...]


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
        choices: what was said about the rows, and about what was chosen.
    """

    config: TrainConfig
    method: Method
    template: Template
    manual: dict[str, Template]
    verbalizer: Verbalizer
    checkpoint: Checkpoint
    data: DataSplits
    choices: list[str]


def read_inputs(config: TrainConfig, progress: Progress, source: Source | None = None) -> Inputs:
    """Read the rows, find the files of the model, and choose what the configuration leaves open.

    Args:
        config: all options of the training.
        progress: receives stages and choices.
        source: the rows of the configuration, if they are read already.

    Raises:
        PtexportError: parts do not fit together; see `ptexport.runtime.errors`.
    """
    method = check_config(config)
    source = source or read_source(config, progress)
    choices = [*source.said]
    rows = source.splits["train"]
    labels, said = _labels(config, rows)
    choices += [said] if said else []
    fields = Template.parse(config.template).fields if config.template else _fields(rows[0])
    names = None if labels.open_vocabulary else labels.labels
    data = split_rows(source.splits, source=config.data, labels=names, fields=fields, seed=config.settings.seed)
    with distributed.rank_0_first():
        checkpoint = find_checkpoint(config.model, revision=config.revision, stage=progress.stage)
    lm_head = checkpoint.lm_head
    words = None if lm_head is None else WordTokenizer(checkpoint.read_tokenizer())
    head = config.head
    if head is None:
        head, reason = choose_head(method, lm_head, names if said else None, words)
        choices.append(f"head {head}: {reason}")
    _check_head(config, head, checkpoint)
    template = config.template or choose_template(config.method, method, lm_head, head, fields)
    n_train = sum(len(row.choices or ("",)) for row in data.train)
    config = fill_in(config, method, head, template, n_train)
    parsed, manual = check_templates(config, method)
    verbalizer = labels.with_head(linear=head == "linear", drop_words=config.labels is None)
    if head == "words":
        verbalizer = _with_words(verbalizer, words or WordTokenizer(checkpoint.read_tokenizer()), parsed)
    for choice in choices[len(source.said) :]:
        progress.choice(choice)
    return Inputs(
        config=config,
        method=method,
        template=parsed,
        manual=manual,
        verbalizer=verbalizer,
        checkpoint=checkpoint,
        data=data,
        choices=choices,
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


def read_source(config: TrainConfig, progress: Progress) -> Source:
    """Read the rows of a configuration.

    Raises:
        DataError: a file cannot be read, or a row is not as described (names the line).
        MissingExtraError: the data needs a package that is not installed.
    """
    if config.data == CITIES and config.columns != Columns():
        raise DataError("data cities: has the columns text and label only; leave out the options about columns")
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        progress.choice(message)

    splits = read_splits(config.data, config.columns, say)
    for name, path in (("dev", config.dev), ("test", config.test)):
        if path is not None:
            splits[name] = list(read_rows(Path(path), config.columns))
    return Source(splits=splits, said=tuple(said))


def _labels(config: TrainConfig, rows: list[Row]) -> tuple[Verbalizer, str | None]:
    """Return the labels before the head is known, and, if they come from the rows, a sentence about them."""
    if config.labels is not None:
        verbalizer = Verbalizer.parse(config.labels, linear=config.head == "linear")
        if config.template is not None and "choice" in Template.parse(config.template).fields:
            check_multiple_choice(config, verbalizer)
        return verbalizer, None
    if config.data == CITIES:
        return Verbalizer.parse(cities.labels(linear=False), linear=False), None
    if rows[0].choices is not None:
        verbalizer = Verbalizer(labels=_CHOICE, words=None)
        check_multiple_choice(config, verbalizer)
        return verbalizer, f"labels: {', '.join(_CHOICE)}, of the right choice and of the others"
    counts = count_labels(rows, config.data)
    said = [f"{label} ({count} rows)" for label, count in counts.items()][:_MOST_LABELS_SAID]
    names = f"labels: {', '.join(said)}{', …' * (len(counts) > len(said))}"
    unused = [repr(name) for name in config.columns.label_names.values() if name not in counts]
    unused_names = f"; no row has the label {', '.join(unused)} of --label-names" if unused else ""
    return Verbalizer(labels=tuple(counts), words=None), names + unused_names


def _check_head(config: TrainConfig, head: Head, checkpoint: Checkpoint) -> None:
    """Raise ModelError if label words need a language-model head, and the model is known to have none."""
    if head == "words" and checkpoint.lm_head is None and checkpoint.architecture:
        advice = "--head linear" if "linear" in METHODS[config.method].heads else "another model or method"
        raise ModelError(
            f"model {checkpoint.name}: {checkpoint.architecture} has no language-model head, which label words need; "
            f"use {advice}"
        )


def _with_words(verbalizer: Verbalizer, words: WordTokenizer, template: Template) -> Verbalizer:
    """Fill in label words, and check that each is one token."""
    filled = verbalizer.filled(words, spaced=template.answer_spaced)
    filled.word_ids(words, spaced=template.answer_spaced, unknown=None)
    return filled


def _fields(row: Row) -> list[TextField]:
    """Return the names of the texts of a row."""
    if row.choices is not None:
        return ["text", "choice"]
    return ["text"] if row.text_b is None else ["text", "text_b"]
