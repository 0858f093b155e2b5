"""A text classifier of Transformers -> a Run that gives the same logits; does not train.

The last linear layer becomes the label weights. All other layers of the classifier, such as RoBERTa's dense layer, stay
in the backbone.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from ptexport.runtime.engine.text_encoder import Text, TextEncoder
from ptexport.runtime.errors import CheckpointError, reason
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.imports.config import ImportConfig
from ptexport.toolkit.imports.conversion import (
    N_COMPARED,
    Conversion,
    head_of,
    largest_difference,
    load_for,
    versions,
    write_special,
)
from ptexport.toolkit.imports.inputs import PAIR, TEXT, ClassifierInputs
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint
from ptexport.toolkit.models.facts import sha256_files
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.prompt_model import choose_max_length
from ptexport.toolkit.run.config import Imported, TaskOptions
from ptexport.toolkit.run.run import POSSIBLE_FILES, Run
from ptexport.toolkit.store.folders import new_folder
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.words import WordTokenizer


def import_classifier(inputs: ClassifierInputs, progress: Progress) -> Run:
    """Import a classifier into a folder; the folder is written atomically.

    Raises:
        OutputError: the run exists, or cannot be written.
        CheckpointError: its tokenizer or its layers are not supported, or the ids or logits of the run differ from
            those of Transformers.
        ModelError: the model cannot be loaded, or its architecture is not supported.
        TemplateError: `max_length` does not fit the model.
    """
    config = inputs.config
    with new_folder(config.out, force=config.force, files=POSSIBLE_FILES) as folder:
        progress.stage("loading the classifier twice: as it is, and as a backbone")
        original = Original.load(inputs.checkpoint)
        backbone = load_backbone(inputs.checkpoint, "pooled")
        progress.stage("comparing with Transformers")
        run = _make_run(inputs, original, backbone)
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
        model, missing = load_for(AutoModelForSequenceClassification, checkpoint, "classification")
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise CheckpointError(f"{where}: Transformers cannot load its tokenizer ({reason(e)})") from e
        if missing:
            raise CheckpointError(
                f"{where}: the checkpoint lacks {', '.join(sorted(missing))}, so logits would be random; give a "
                "classifier that was fine-tuned"
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


def _compile(config: ImportConfig, backbone: Backbone) -> tuple[str, CompiledTemplate]:
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


def _make_run(inputs: ClassifierInputs, original: Original, backbone: Backbone) -> Run:
    """Convert the classifier, and compare ids and logits of the run with the original's."""
    config, verbalizer = inputs.config, inputs.verbalizer
    source, compiled = _compile(config, backbone)
    label_weights, label_bias = head_of(original.model, len(verbalizer.labels), config.source)
    conversion = Conversion.of(
        backbone, compiled, backbone.own_pooling, label_weights=label_weights, label_bias=label_bias
    )
    named = _compared_texts(inputs.rows, compiled)
    texts = list(named.values())
    answers = [original.answer(text, compiled.max_length) for text in texts]
    encodings = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)
    for name, encoding, (ids, types, _) in zip(named, encodings, answers, strict=True):
        differ = "ids" if encoding.ids != ids else "token types" if encoding.type_ids != types else None
        if differ == "ids" or (differ is not None and backbone.facts.token_types):
            raise CheckpointError(
                f"{config.source}: {name} has other {differ} than its own tokenizer gives; not supported, please "
                "report its tokenizer"
            )
    expected = torch.cat([logits for *_, logits in answers])
    imported = Imported(
        folder=config.source,
        peft_type=None,
        task_type="SEQ_CLS",
        weights_sha256=original.weights_sha256(),
        max_abs_diff=largest_difference(config.source, "Transformers", expected, conversion.logits(texts)),
        rows=len(texts),
        versions=versions(),
    )
    options = TaskOptions(
        method="fine-tune",
        model=config.source,
        template=source,
        columns=config.columns or Columns(),
        init=None,
        truncate=compiled.truncate,
    )
    return conversion.run(options, imported, verbalizer, inputs.rows, backbone=backbone)


def _compared_texts(rows: Sequence[Row], compiled: CompiledTemplate) -> dict[str, Text]:
    """Choose texts to compare, by name, without the space around them, which a template removes; the last is long."""
    texts = {row.where: _changed(row.texts, str.strip) for row in rows[:N_COMPARED]}
    long = _changed(rows[0].texts, lambda part: " ".join([part.strip()[:100] or "a"] * compiled.max_length))
    return {**texts, f"a row of more than {compiled.max_length} tokens": long}


def _changed(text: Text, change: Callable[[str], str]) -> Text:
    return change(text) if isinstance(text, str) else (change(text[0]), change(text[1]))
