"""The options of an import -> everything that it needs besides the loaded model; without torch.

Whatever can be refused without loading the model is refused here.
"""

from dataclasses import dataclass
from pathlib import Path

from ptexport.runtime.errors import CheckpointError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.imports.adapter_files import AdapterFiles
from ptexport.toolkit.imports.classifier_files import check_classifier, label_names
from ptexport.toolkit.imports.config import ImportConfig, read_check_rows, read_object
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.run.run import CONFIG, POSSIBLE_FILES
from ptexport.toolkit.store.folders import check_free
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

TEXT, PAIR = "{text}", "{text} {text_b}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInputs:
    """What the import of an adapter needs.

    Attributes:
        config: the options.
        files: the adapter.
        checkpoint: files of its base model.
        template: the template without virtual tokens.
        verbalizer: labels and, for CAUSAL_LM, label words.
        rows: rows for the parity check.
    """

    config: ImportConfig
    files: AdapterFiles
    checkpoint: Checkpoint
    template: Template
    verbalizer: Verbalizer
    rows: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierInputs:
    """What the import of a classifier needs.

    Attributes:
        config: the options.
        checkpoint: files of the classifier.
        template: `TEXT` or `PAIR`.
        verbalizer: its labels.
        rows: rows for the parity check.
    """

    config: ImportConfig
    checkpoint: Checkpoint
    template: Template
    verbalizer: Verbalizer
    rows: list[Row]


def read_adapter(config: ImportConfig, progress: Progress) -> AdapterInputs:
    """Read what the import of an adapter needs, and find the files of its base model.

    Raises:
        OutputError: the run exists.
        CheckpointError: the folder holds no adapter, or one that is not supported.
        PtexportError: the model, labels, template or rows do not fit.
    """
    check_free(config.out, force=config.force, files=POSSIBLE_FILES)
    files = AdapterFiles.read(Path(config.source))
    template = _adapter_template(config, files)
    linear = files.task == "SEQ_CLS"
    if config.labels is None and not linear:
        raise CheckpointError(f"{files.folder}: has no label words; give --labels name=word,name=word")
    given = None if config.labels is None else Verbalizer.parse(config.labels, linear=linear)
    rows = read_check_rows(config, template.fields)
    checkpoint = _base_model(config, files, progress)
    if given is None or linear:
        verbalizer = _one_per_output(config, given, _adapter_labels(files, checkpoint))
    else:
        words, spaced = WordTokenizer(checkpoint.read_tokenizer()), template.answer_spaced
        verbalizer = given.filled(words, spaced=spaced)
        verbalizer.word_ids(words, spaced=spaced, unknown=None)
    return AdapterInputs(
        config=config, files=files, checkpoint=checkpoint, template=template, verbalizer=verbalizer, rows=rows
    )


def read_classifier(config: ImportConfig, progress: Progress) -> ClassifierInputs:
    """Read what the import of a classifier needs, and find its files.

    Raises:
        OutputError: the run exists.
        CheckpointError: the model is no classifier of texts into two or more labels, or has no safe weights.
        ModelError: the model cannot be found.
        PtexportError: the labels, template or rows do not fit.
    """
    check_free(config.out, force=config.force, files=POSSIBLE_FILES)
    if config.model is not None:
        raise CheckpointError(f"model {config.model}: a classifier is its own model; leave out --model")
    if config.template not in (None, TEXT, PAIR):
        raise CheckpointError(
            f"template {config.template!r}: a classifier takes texts alone, with the special tokens of its tokenizer; "
            f"use '{TEXT}' or '{PAIR}'"
        )
    template = Template.parse(config.template or TEXT)
    given = None if config.labels is None else Verbalizer.parse(config.labels, linear=True)
    rows = read_check_rows(config, template.fields)
    checkpoint = find_checkpoint(config.source, stage=progress.stage)
    verbalizer = _one_per_output(config, given, check_classifier(checkpoint))
    return ClassifierInputs(config=config, checkpoint=checkpoint, template=template, verbalizer=verbalizer, rows=rows)


def _adapter_template(config: ImportConfig, files: AdapterFiles) -> Template:
    """Parse the template.

    Raises:
        CheckpointError: the template does not fit the adapter.
        TemplateError: the template cannot be parsed.
    """
    where = f"template {config.template!r}"
    if files.task == "SEQ_CLS" and config.template is not None:
        raise CheckpointError(f"{where}: a classification layer takes the text alone; leave out --template")
    template = Template.parse(config.template or TEXT)
    if template.n_prompt or template.has("mask"):
        raise CheckpointError(f"{where}: PEFT puts its virtual tokens first; leave out [P] and [MASK]")
    if "choice" in template.fields:
        raise CheckpointError(f"{where}: PEFT models do not take {{choice}}; use {{text_b}}")
    return template


def _base_model(config: ImportConfig, files: AdapterFiles, progress: Progress) -> Checkpoint:
    """Find the files of the given model, or of the base model of the adapter.

    Raises:
        CheckpointError: neither is known.
        ModelError: the files cannot be found.
    """
    name = config.model or files.base
    if name is None:
        raise CheckpointError(f"{files.folder}: names no base model; give it with --model")
    from_hub = config.model is None and not Path(name).is_dir()
    return find_checkpoint(name, revision=files.revision if from_hub else None, stage=progress.stage)


def _adapter_labels(files: AdapterFiles, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the labels that the base model names, if it names as many as the adapter has; else LABEL_0 and so on."""
    names = label_names(read_object(checkpoint.path / CONFIG), f"model {checkpoint.name}")
    return names if len(names) == files.n_labels else label_names({"num_labels": files.n_labels}, checkpoint.name)


def _one_per_output(config: ImportConfig, given: Verbalizer | None, names: tuple[str, ...]) -> Verbalizer:
    """Return the labels given, or those that the model names.

    Raises:
        CheckpointError: they are not one per output, or the model gives two outputs one name.
    """
    if given is None:
        if len(set(names)) < len(names) or "" in names:
            raise CheckpointError(
                f"{config.source}: id2label names the labels {list(names)}, need different names; give --labels"
            )
        return Verbalizer(labels=names, words=None)
    if len(given.labels) != len(names):
        raise CheckpointError(
            f"labels {config.labels!r}: got {len(given.labels)}, {config.source} has {len(names)}; name each"
        )
    return given
