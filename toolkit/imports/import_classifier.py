"""A text classifier of Transformers -> a Run that gives the same logits; does not train.

The last linear layer becomes the label weights. All other layers of the classifier, such as RoBERTa's dense layer, stay
in the backbone.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.errors import CheckpointError, reason
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.imports.conversion import (
    N_COMPARED,
    Conversion,
    head_of,
    largest_difference,
    read_check_rows,
    versions,
)
from ptexport.toolkit.imports.peft_plan import write_special
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.models.facts import sha256_files
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.prompt_model import choose_max_length
from ptexport.toolkit.run.config import Imported, TaskOptions
from ptexport.toolkit.run.run import POSSIBLE_FILES, Run
from ptexport.toolkit.store.folders import check_free, new_folder
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer

TEXT, PAIR = "{text}", "{text} {text_b}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """Options of one import.

    Attributes:
        classifier: a folder that Transformers' `save_pretrained` wrote, or a hub name.
        out: folder of the run.
        labels: names in the order of the outputs, or a file of them; None: those in the model's configuration.
        template: `TEXT` or `PAIR`; None: `TEXT`. The tokenizer of the classifier adds its own special tokens.
        max_length: maximum tokens per row; None: 512, or fewer if the model takes fewer.
        rows: a file of rows for the parity check; None: the built-in cities.
        force: replace an existing run.
    """

    classifier: str
    out: Path
    labels: str | None = None
    template: str | None = None
    max_length: int | None = None
    rows: Path | None = None
    force: bool = False


def import_classifier(config: ClassifierConfig, progress: Progress) -> Run:
    """Import a classifier into a folder; the folder is written atomically.

    Raises:
        OutputError: the run exists, or cannot be written.
        CheckpointError: the model is no classifier of texts into two or more labels, its tokenizer or its layers are
            not supported, or the ids or logits of the run differ from those of Transformers.
        ModelError: the model cannot be found or loaded, or its architecture is not supported.
        PtexportError: the labels, template or rows do not fit.
    """
    check_free(config.out, force=config.force, files=POSSIBLE_FILES)
    template = Template.parse(config.template or TEXT)
    if config.template not in (None, TEXT, PAIR):
        raise CheckpointError(
            f"template {config.template!r}: a classifier takes texts alone, with the special tokens of its tokenizer; "
            f"use '{TEXT}' or '{PAIR}'"
        )
    rows = read_check_rows(config.rows, template.fields)
    checkpoint = find_checkpoint(config.classifier, stage=progress.stage)
    with new_folder(config.out, force=config.force, files=POSSIBLE_FILES) as folder:
        progress.stage("loading the classifier twice: as it is, and as a backbone")
        original = Original.load(checkpoint)
        verbalizer = _verbalizer(config, original.model)
        backbone = load_backbone(checkpoint, "pooled")
        progress.stage("comparing with Transformers")
        run = _make_run(config, original, backbone, verbalizer, rows)
        run.write(folder)
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The untouched classifier and its own tokenizer.

    Attributes:
        checkpoint: its files.
        model: in fp32, on the CPU.
        tokenizer: Transformers' tokenizer.
    """

    checkpoint: Checkpoint
    model: PreTrainedModel
    tokenizer: Any

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "Original":
        """Load it.

        Raises:
            CheckpointError: Transformers cannot load it as a classifier, or its layers would be random.
        """
        where = f"model {checkpoint.name}"
        pickled = (checkpoint.path / "pytorch_model.bin").is_file()
        if pickled and not list(checkpoint.path.glob("*.safetensors")):
            raise CheckpointError(
                f"{where}: has only pytorch_model.bin, a pickle, which can run code; load it with Transformers and "
                "save it with save_pretrained"
            )
        try:
            _check_kind(AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False), where)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                checkpoint.path,
                dtype=torch.float32,
                use_safetensors=True,  # no pickle
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as e:
            raise CheckpointError(f"{where}: Transformers cannot load it as a classifier ({reason(e)})") from e
        missing = sorted(loading["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{where}: the checkpoint lacks {', '.join(missing)}, so logits would be random; give a classifier "
                "that was fine-tuned"
            )
        return cls(checkpoint=checkpoint, model=model.requires_grad_(False).eval(), tokenizer=tokenizer)

    @torch.no_grad()
    def answer(self, text: Text, max_length: int) -> tuple[list[int], list[int], Tensor]:
        """Tokenise and classify one row as users of Transformers do.

        Returns:
            Its ids, its token types (0 if the tokenizer returns none), and its logits, float [1, c].

        Raises:
            CheckpointError: the model cannot be called with what its tokenizer returns.
        """
        parts = [text] if isinstance(text, str) else text
        inputs = self.tokenizer(*parts, truncation=True, max_length=max_length, return_tensors="pt")
        taken = inspect.signature(self.model.forward).parameters
        try:
            logits: Tensor = self.model(**{name: ids for name, ids in inputs.items() if name in taken}).logits
        except (IndexError, RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"model {self.checkpoint.name}: Transformers cannot run it on what its tokenizer returns "
                f"({reason(e)}); check its files"
            ) from e
        ids = inputs["input_ids"]
        return ids[0].tolist(), inputs.get("token_type_ids", torch.zeros_like(ids))[0].tolist(), logits

    def weights_sha256(self) -> str:
        """Return the sha256 of the weights files."""
        return sha256_files(sorted(self.checkpoint.path.glob("*.safetensors")))


def _check_kind(config: Any, where: str) -> None:
    """Check that each text gets one of several labels.

    Raises:
        CheckpointError: it does not.
    """
    if config.num_labels < 2 or config.problem_type == "regression":
        raise CheckpointError(f"{where}: is a regression, need a classifier of two or more labels; not supported")
    if config.problem_type == "multi_label_classification":
        raise CheckpointError(
            f"{where}: gives a text several labels (multi_label_classification), need exactly one; not supported"
        )


def _verbalizer(config: ClassifierConfig, model: PreTrainedModel) -> Verbalizer:
    n_labels = model.config.num_labels
    if config.labels is None:
        names = tuple(str(model.config.id2label[i]) for i in range(n_labels))
        if len(set(names)) < n_labels or "" in names:
            raise CheckpointError(
                f"{config.classifier}: id2label names the labels {list(names)}, need different names; give --labels"
            )
        return Verbalizer(labels=names, words=None)
    verbalizer = Verbalizer.parse(config.labels, linear=True)
    if len(verbalizer.labels) != n_labels:
        raise CheckpointError(
            f"labels {config.labels!r}: got {len(verbalizer.labels)}, {config.classifier} has {n_labels}; name each"
        )
    return verbalizer


def _compile(config: ClassifierConfig, backbone: Backbone) -> tuple[str, CompiledTemplate]:
    """Write the texts with the special tokens of the tokenizer as a template; returns its source too."""
    words = WordTokenizer(backbone.tokenizer_json)
    source = TEXT
    if config.template == PAIR:
        before, between, after = (write_special(ids, backbone.facts, words) for ids in words.surrounding_pair())
        # A space would become part of the next token on byte-level BPE.
        space = "" if words.space_matters else " "
        source = space.join([*before, "{text}", *between, "{text_b}", *after])
    compiled = compile_template(
        Template.parse(source),
        backbone.facts,
        backbone.tokenizer_json,
        mask_slot=False,
        max_length=choose_max_length(config.max_length, backbone.facts),
    )
    return source, compiled


def _make_run(
    config: ClassifierConfig, original: Original, backbone: Backbone, verbalizer: Verbalizer, rows: list[Row]
) -> Run:
    """Convert the classifier, and compare ids and logits of the run with the original's."""
    source, compiled = _compile(config, backbone)
    label_weights, label_bias = head_of(original.model, config.classifier)
    conversion = Conversion.of(
        backbone, compiled, backbone.own_pooling, label_weights=label_weights, label_bias=label_bias
    )
    named = _compared_texts(rows, compiled)
    texts = list(named.values())
    answers = [original.answer(text, compiled.max_length) for text in texts]
    encodings = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)
    for name, encoding, (ids, types, _) in zip(named, encodings, answers, strict=True):
        differ = "ids" if encoding.ids != ids else "token types" if encoding.type_ids != types else None
        if differ == "ids" or (differ is not None and backbone.facts.token_types):
            raise CheckpointError(
                f"{config.classifier}: {name} has other {differ} than its own tokenizer gives; not supported, please "
                "report its tokenizer"
            )
    expected = torch.cat([logits for *_, logits in answers])
    imported = Imported(
        folder=config.classifier,
        peft_type=None,
        task_type="SEQ_CLS",
        weights_sha256=original.weights_sha256(),
        max_abs_diff=largest_difference(config.classifier, "Transformers", expected, conversion.logits(texts)),
        rows=len(texts),
        versions=versions(),
    )
    options = TaskOptions(
        method="fine-tune", model=config.classifier, template=source, init=None, truncate=compiled.truncate
    )
    return conversion.run(options, imported, verbalizer, rows, backbone=backbone)


def _compared_texts(rows: Sequence[Row], compiled: CompiledTemplate) -> dict[str, Text]:
    """Choose texts to compare, by name, without the space around them, which a template removes; the last is long."""
    texts = {row.where: _changed(row.texts, str.strip) for row in rows[:N_COMPARED]}
    long = _changed(rows[0].texts, lambda part: " ".join([part.strip()[:100] or "a"] * compiled.max_length))
    return {**texts, f"a row of more than {compiled.max_length} tokens": long}


def _changed(text: Text, change: Callable[[str], str]) -> Text:
    return change(text) if isinstance(text, str) else (change(text[0]), change(text[1]))
