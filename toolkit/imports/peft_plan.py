"""Import options -> loaded parts that fit together; reports what does not fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import CheckpointError
from ptexport.toolkit.imports.adapter import PROMPT, Adapter
from ptexport.toolkit.imports.source import WEIGHTS
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.prompt_model import choose_max_length
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Options of one import.

    Attributes:
        adapter: a folder that PEFT's `save_pretrained` wrote.
        out: folder of the run.
        model: alias, folder or hub name; None: the base model of the adapter.
        labels: for CAUSAL_LM, `name=word|word,…` or a file; for SEQ_CLS, names in the order of the outputs, or None:
            those in the model's configuration.
        template: for CAUSAL_LM, a template without virtual tokens; None: the text alone.
        max_length: maximum tokens per row; None: 512, or fewer if the backbone takes fewer.
        rows: a file of rows for the parity check; None: the built-in cities.
        force: replace an existing run.
    """

    adapter: Path
    out: Path
    model: str | None = None
    labels: str | None = None
    template: str | None = None
    max_length: int | None = None
    rows: Path | None = None
    force: bool = False


def parse_template(config: ImportConfig, adapter: Adapter) -> Template:
    """Parse the template and check the labels before a model is loaded.

    Raises:
        CheckpointError: the template or the labels do not fit the adapter.
        TemplateError: the template cannot be parsed.
        VerbalizerError: the labels cannot be parsed.
    """
    if adapter.task == "SEQ_CLS" and config.template is not None:
        raise CheckpointError(
            f"template {config.template!r}: a classification layer takes the text alone; leave out --template"
        )
    if adapter.task == "CAUSAL_LM":
        if config.labels is None:
            raise CheckpointError(f"{adapter.folder}: has no label words; give --labels name=word,name=word")
        Verbalizer.parse(config.labels, linear=False)
    template = Template.parse(config.template or "{text}")
    if template.n_prompt or template.has("mask"):
        raise CheckpointError(
            f"template {config.template!r}: PEFT puts its virtual tokens first; leave out [P] and [MASK]"
        )
    if "choice" in template.fields:
        raise CheckpointError(f"template {config.template!r}: PEFT models do not take {{choice}}; use {{text_b}}")
    return template


def find_model(config: ImportConfig, adapter: Adapter, progress: Progress) -> Checkpoint:
    """Find the files of the given model, or of the base model of the adapter.

    Raises:
        CheckpointError: neither is known.
        ModelError: the files cannot be found.
    """
    name = config.model or adapter.base
    if name is None:
        raise CheckpointError(f"{adapter.folder}: names no base model; give it with --model")
    from_hub = config.model is None and not Path(name).is_dir()
    return find_checkpoint(name, revision=adapter.config.revision if from_hub else None, stage=progress.stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of an import.

    Attributes:
        adapter: the adapter.
        adapted: PEFT's model: the adapter on a backbone of its own.
        backbone: the backbone without the adapter.
        pooling: hidden state that becomes logits.
        verbalizer: labels and, for CAUSAL_LM, label words.
        word_ids: token ids of the words of each label; empty for a classification layer.
        compiled: the template, with virtual tokens where PEFT puts them, compiled for the backbone.
        source: the same template as text.
        prompt_embeddings: float [p, e]; None if no virtual token has an embedding.
        prefix_kv: float [l, 2, 1, k, n, d]; None if no virtual token is keys and values.
    """

    adapter: Adapter
    adapted: PeftModel
    backbone: Backbone
    pooling: Pooling
    verbalizer: Verbalizer
    word_ids: list[list[int]]
    compiled: CompiledTemplate
    source: str
    prompt_embeddings: Tensor | None
    prefix_kv: Tensor | None

    @classmethod
    def fit(cls, config: ImportConfig, adapter: Adapter, checkpoint: Checkpoint, template: Template) -> "Parts":
        """Load the parts and check that they fit together.

        Args:
            config: options of the import.
            adapter: the adapter.
            checkpoint: files of its model.
            template: the template without virtual tokens.

        Raises:
            CheckpointError: the adapter is for another model, or its head is not supported.
            ModelError: the model cannot be loaded, or is not supported.
            TemplateError: the template does not fit the model.
            VerbalizerError: a label word is not one token.
        """
        backbone = load_backbone(checkpoint, "words" if adapter.task == "CAUSAL_LM" else "linear")
        facts, words = backbone.facts, WordTokenizer(backbone.tokenizer_json)
        pooling = _choose_pooling(adapter, backbone)
        adapted = adapter.load(checkpoint)
        spaced, unknown = template.answer_spaced, facts.tokens.get("unk")
        verbalizer = _verbalizer(config, adapter, adapted).filled(words, spaced=spaced)
        word_ids = verbalizer.word_ids(words, spaced=spaced, unknown=unknown) if verbalizer.words else []
        prefix_kv = _prefix_kv(adapted) if adapter.kind == "PREFIX_TUNING" else None
        embeddings = _prompt_embeddings(adapter, facts) if adapter.kind in ("P_TUNING", "PROMPT_TUNING") else None
        n_prefix = 0 if prefix_kv is None else prefix_kv.shape[4]
        source = _add_virtual_tokens(template, n_prefix, 0 if embeddings is None else len(embeddings), facts, words)
        length = choose_max_length(config.max_length, facts)
        json = backbone.tokenizer_json
        compiled = compile_template(
            Template.parse(source), facts, json, mask_slot=False, max_length=length, n_prefix=n_prefix
        )
        return cls(
            adapter=adapter,
            adapted=adapted,
            backbone=backbone,
            pooling=pooling,
            verbalizer=verbalizer,
            word_ids=word_ids,
            compiled=compiled,
            source=source,
            prompt_embeddings=embeddings,
            prefix_kv=prefix_kv,
        )


def _add_virtual_tokens(
    template: Template, n_prefix: int, n_embeddings: int, facts: BackboneFacts, words: WordTokenizer
) -> str:
    """Write the template with virtual tokens where PEFT puts them."""
    if n_embeddings:
        return put_in_front(n_embeddings, template, facts, words)
    # No space after virtual tokens: it would become part of the first token of the text.
    return f"[P*{n_prefix}]" * bool(n_prefix) + template.source


def put_in_front(n_prompt: int, template: Template, facts: BackboneFacts, words: WordTokenizer) -> str:
    """Write a template with prompt embeddings first, before [CLS] or BOS, which stay around the rest.

    Args:
        n_prompt: number of virtual tokens, at least 1.
        template: the template without virtual tokens.
        facts: facts about the backbone.
        words: tokenizer of the backbone.

    Raises:
        CheckpointError: the tokenizer adds a token that templates cannot express.
    """
    before, after = ([], []) if template.has("cls", "sep", "bos") else words.surrounding()
    opening, closing = (write_special(ids, facts, words) for ids in (before, after))
    # A space would become part of the first token of the text on byte-level BPE, where PEFT has none.
    return ("" if words.space_matters else " ").join([f"[P*{n_prompt}]", *opening, template.source, *closing])


def write_special(ids: list[int], facts: BackboneFacts, words: WordTokenizer) -> list[str]:
    """Write special tokens that the tokenizer adds to texts as parts of a template, such as [CLS].

    Raises:
        CheckpointError: templates cannot express one of them.
    """
    written = {facts.tokens[role]: f"[{role.upper()}]" for role in ("bos", "sep", "cls") if role in facts.tokens}
    for name in map(words.name, ids):
        if name not in written:
            raise CheckpointError(
                f"model {facts.name}: adds {name} to texts, which templates cannot express; not supported"
            )
    return [written[words.name(id_)] for id_ in ids]


def _choose_pooling(adapter: Adapter, backbone: Backbone) -> Pooling:
    """Return the hidden state that becomes logits in PEFT's model."""
    facts = backbone.facts
    if facts.causal:
        return "last"
    if adapter.task == "CAUSAL_LM":
        raise CheckpointError(
            f"{adapter.folder}: is for CAUSAL_LM, got the masked model {facts.name}; give a causal one"
        )
    if adapter.kind != "LORA" and getattr(backbone.model, "pooler", None) is None:
        raise CheckpointError(f"model {facts.name}: {facts.model_type} has no pooler like BERT's; not supported")
    return backbone.own_pooling


def _verbalizer(config: ImportConfig, adapter: Adapter, adapted: PeftModel) -> Verbalizer:
    if adapter.task == "CAUSAL_LM":
        assert config.labels is not None, "checked before"
        return Verbalizer.parse(config.labels, linear=False)
    n_label = len(adapter.head()[0])
    if n_label < 2:
        raise CheckpointError(
            f"{adapter.folder}: has one output, a regression; need a classifier of two or more labels"
        )
    if config.labels is None:
        names = adapted.config.id2label
        return Verbalizer(labels=tuple(str(names[i]) for i in range(n_label)), words=None)
    verbalizer = Verbalizer.parse(config.labels, linear=True)
    if len(verbalizer.labels) != n_label:
        raise CheckpointError(f"labels {config.labels!r}: got {len(verbalizer.labels)}, {adapter.folder} has {n_label}")
    return verbalizer


def _prompt_embeddings(adapter: Adapter, facts: BackboneFacts) -> Tensor:
    embeddings = adapter.tensors[PROMPT].float()
    if embeddings.ndim != 2 or embeddings.shape[1] != facts.embedding_width:
        raise CheckpointError(
            f"{adapter.folder / WEIGHTS}: {PROMPT} is {list(embeddings.shape)}, the embeddings of {facts.name} are "
            f"{facts.embedding_width} wide; give the model it was trained on with --model"
        )
    return embeddings


@torch.no_grad()
def _prefix_kv(adapted: PeftModel) -> Tensor:
    """Return the keys and values that PEFT computes, float [l, 2, 1, k, n, d]."""
    cache: Any = adapted.get_prompt(1)  # annotated as a tensor, which other kinds return
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
