"""An import as asked for -> parts that fit together, with all that can be refused refused; bakes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import AdapterError
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.peft.adapter import PROMPT, WEIGHTS, Adapter
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.prompt_model import DEFAULT_MAX_LENGTH
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """One import, as asked for.

    Attributes:
        adapter: the folder that PEFT's `save_pretrained` wrote.
        out: the run's folder.
        model: alias, folder or hub name; None: the one the adapter names.
        labels: of a causal language model, `name=word|word,…` or a file; of a classification layer names, in the order
            of its outputs, or None: those in the model's configuration.
        template: of a causal language model, without virtual tokens; None: the text alone.
        max_length: most tokens in one row; None: 512, or fewer where the backbone takes fewer.
        rows: a file of rows to check parity on; None: the built-in cities.
        force: replace a run that exists.
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
    """Parse the template and look at the labels, before anything is loaded for them.

    Raises:
        AdapterError: one of them does not go with the adapter.
        TemplateError: the template cannot be parsed.
        VerbalizerError: the labels cannot.
    """
    if adapter.task == "SEQ_CLS" and config.template is not None:
        raise AdapterError(f"template {config.template!r}: a classification layer reads the text; leave out --template")
    if adapter.task == "CAUSAL_LM":
        if config.labels is None:
            raise AdapterError(f"{adapter.folder}: names no labels; write --labels name=word,name=word")
        Verbalizer.parse(config.labels, linear=False)
    template = Template.parse(config.template or "{text}")
    if template.n_prompt or template.has("mask"):
        raise AdapterError(f"template {config.template!r}: PEFT puts virtual tokens in front; leave out [P] and [MASK]")
    if "choice" in template.fields:
        raise AdapterError(f"template {config.template!r}: takes choices, which PEFT's models do not; use {{text_b}}")
    return template


def find_model(config: ImportConfig, adapter: Adapter, progress: Progress) -> Checkpoint:
    """Find the model asked for, or the one that the adapter names.

    Raises:
        AdapterError: neither is given.
        ModelError: there is no way to it.
    """
    name = config.model or adapter.base
    if name is None:
        raise AdapterError(f"{adapter.folder}: does not say which model it is for; give it with --model")
    from_hub = config.model is None and not Path(name).is_dir()
    return find_checkpoint(name, revision=adapter.config.revision if from_hub else None, stage=progress.stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What fits together.

    Attributes:
        adapter: as read.
        adapted: PEFT's model, of the adapter and a backbone of its own.
        backbone: as it was before.
        pooling: which state becomes logits.
        verbalizer: labels and, on a language model, their words.
        word_ids: of each label's words; none of a classification layer.
        source: the template with the virtual tokens where PEFT has them.
        compiled: likewise.
        prompt_embeddings: float [p, e]; one of zeros if no virtual token is a row.
        prefix: float [l, 2, 1, k, n, d]; None if no virtual token is keys and values.
    """

    adapter: Adapter
    adapted: PeftModel
    backbone: Backbone
    pooling: Pooling
    verbalizer: Verbalizer
    word_ids: list[list[int]]
    source: str
    compiled: CompiledTemplate
    prompt_embeddings: Tensor
    prefix: Tensor | None

    @classmethod
    def fit(cls, config: ImportConfig, adapter: Adapter, checkpoint: Checkpoint, template: Template) -> "Parts":
        """Load everything and fit it together.

        Args:
            config: the import, as asked for.
            adapter: to be imported.
            checkpoint: of its model.
            template: without virtual tokens.

        Raises:
            AdapterError: the adapter is for another model, or its head is not supported.
            ModelError: the model cannot be loaded, or is not supported.
            TemplateError: the template does not fit it.
            VerbalizerError: a label word is not one token.
        """
        backbone = load_backbone(checkpoint, "words" if adapter.task == "CAUSAL_LM" else "linear")
        facts, words = backbone.facts, WordTokenizer(backbone.tokenizer_json)
        pooling = _read(adapter, backbone)
        adapted = adapter.load(checkpoint)
        spaced, unknown = template.answer_spaced, facts.tokens.get("unk")
        verbalizer = _verbalizer(config, adapter, adapted).filled(words, spaced=spaced)
        word_ids = verbalizer.word_ids(words, spaced=spaced, unknown=unknown) if verbalizer.words else []
        prefix = _prefix(adapted) if adapter.kind == "PREFIX_TUNING" else None
        n_prefix = 0 if prefix is None else prefix.shape[4]
        # A space after virtual tokens would become part of the text's first token.
        rows, source = torch.zeros(1, facts.embedding_width), f"[P*{n_prefix}]" * bool(n_prefix) + template.source
        if adapter.kind in ("P_TUNING", "PROMPT_TUNING"):
            rows = _rows(adapter, facts)
            source = put_in_front(len(rows), template, facts, words)
        compiled = compile_template(
            Template.parse(source),
            facts,
            backbone.tokenizer_json,
            mask_slot=False,
            max_length=config.max_length or min(DEFAULT_MAX_LENGTH, facts.max_positions),
            n_prefix=n_prefix,
        )
        return cls(
            adapter=adapter,
            adapted=adapted,
            backbone=backbone,
            pooling=pooling,
            verbalizer=verbalizer,
            word_ids=word_ids,
            source=source,
            compiled=compiled,
            prompt_embeddings=rows,
            prefix=prefix,
        )


def put_in_front(n_prompt: int, template: Template, facts: BackboneFacts, words: WordTokenizer) -> str:
    """Write a template with rows before everything, [CLS] or BOS too, which stays around the rest.

    Args:
        n_prompt: virtual tokens, at least 1.
        template: without any.
        facts: of the backbone.
        words: its tokenizer.

    Raises:
        AdapterError: the tokenizer puts a token around texts that templates have no name for.
    """
    before, after = ([], []) if template.has("cls", "sep", "bos") else words.surrounding()
    written = {facts.tokens[role]: f"[{role.upper()}]" for role in ("bos", "sep", "cls") if role in facts.tokens}
    for name in map(words.name, (*before, *after)):
        if name not in written:
            raise AdapterError(f"model {facts.name}: puts {name} around texts, which no template can; not supported")
    opening, closing = ([written[words.name(id_)] for id_ in ids] for ids in (before, after))
    # A space that matters would become part of the text's first token, where PEFT has none.
    return ("" if words.space_matters else " ").join([f"[P*{n_prompt}]", *opening, template.source, *closing])


def _read(adapter: Adapter, backbone: Backbone) -> Pooling:
    """Which state PEFT's model makes its logits of."""
    facts = backbone.facts
    if facts.causal:
        return "last"
    if adapter.task == "CAUSAL_LM":
        raise AdapterError(f"{adapter.folder}: is for CAUSAL_LM, and {facts.name} is a masked model; give a causal one")
    pooler = getattr(backbone.model, "pooler", None)
    if pooler is None or isinstance(pooler, nn.Linear):  # ALBERT's, whose activation stands beside it
        raise AdapterError(f"model {facts.name}: {facts.model_type} has no pooler like BERT's; not supported")
    return "pooled"


def _verbalizer(config: ImportConfig, adapter: Adapter, adapted: PeftModel) -> Verbalizer:
    if adapter.task == "CAUSAL_LM":
        assert config.labels is not None, "checked before"
        return Verbalizer.parse(config.labels, linear=False)
    n_label = len(adapter.head()[0])
    if n_label < 2:
        raise AdapterError(f"{adapter.folder}: has one output, a regression; need a classifier of two or more labels")
    if config.labels is None:
        names = adapted.config.id2label
        return Verbalizer(labels=tuple(str(names[i]) for i in range(n_label)), words=None)
    verbalizer = Verbalizer.parse(config.labels, linear=True)
    if len(verbalizer.labels) != n_label:
        raise AdapterError(f"labels {config.labels!r}: got {len(verbalizer.labels)}, {adapter.folder} has {n_label}")
    return verbalizer


def _rows(adapter: Adapter, facts: BackboneFacts) -> Tensor:
    rows = adapter.tensors[PROMPT].float()
    if rows.ndim != 2 or rows.shape[1] != facts.embedding_width:
        raise AdapterError(
            f"{adapter.folder / WEIGHTS}: {PROMPT} is {list(rows.shape)}, the embeddings of {facts.name} are "
            f"{facts.embedding_width} wide; give the model it was trained on with --model"
        )
    return rows


@torch.no_grad()
def _prefix(adapted: PeftModel) -> Tensor:
    """Let PEFT shape the keys and values; float [l, 2, 1, k, n, d]."""
    cache: Any = adapted.get_prompt(1)  # annotated as the tensor that it is for other kinds
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
