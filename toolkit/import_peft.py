"""A PEFT adapter -> a Run, proved against PEFT's own forward pass; trains nothing.

Virtual tokens go where PEFT has them: rows before all else, [CLS] and BOS too, keys and values before the row. LoRA is
merged into a backbone of the run's own.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Encoding
from torch import Tensor, nn

from ptexport.runtime.errors import AdapterError
from ptexport.runtime.manifest import Read
from ptexport.runtime.rows import Row, check_texts, read_rows
from ptexport.runtime.tokens import TextEncoder
from ptexport.toolkit.audit import choose_check_rows
from ptexport.toolkit.backbone import Backbone, load_backbone
from ptexport.toolkit.checkpoint import Checkpoint, find_checkpoint
from ptexport.toolkit.cities import load_cities
from ptexport.toolkit.facts import BackboneFacts
from ptexport.toolkit.folders import check_free, new_folder
from ptexport.toolkit.peft_adapter import CONFIG, METHODS, PROMPT, WEIGHTS, Adapter, read_adapter
from ptexport.toolkit.run import BACKBONE, FILES, RESUME, Baked, Imported, Run, RunConfig
from ptexport.toolkit.scoring import Brings, forward
from ptexport.toolkit.task import DEFAULT_MAX_LENGTH
from ptexport.toolkit.template import Template
from ptexport.toolkit.tokenizer import CompiledTemplate, compile_template
from ptexport.toolkit.training import Progress
from ptexport.toolkit.tuning import Tunable
from ptexport.toolkit.verbalizer import Verbalizer
from ptexport.toolkit.words import WordTokenizer

TOLERANCE = 1e-3
"""Largest difference of a logit that rounding makes in fp32; an adapter that is read wrongly makes more."""
N_PROVED = 8
"""Check rows that PEFT's own forward pass answers too; export compares all of them with the run."""
VERSIONED = ("ptexport", "peft", "torch", "transformers", "tokenizers")


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


def import_peft(config: ImportConfig, progress: Progress) -> Run:
    """Import an adapter into a folder, which is there whole or not at all.

    Raises:
        OutputError: the run exists, or cannot be written.
        AdapterError: the folder holds no adapter, one that is not supported, or one for another model; or what was made
            of it answers otherwise than PEFT does.
        PtexportError: the model, labels, template or rows do not fit.
    """
    files = (*FILES, BACKBONE, RESUME)
    check_free(config.out, force=config.force, files=files)
    adapter = read_adapter(config.adapter)
    template = _template(config, adapter)
    rows = choose_check_rows(load_cities() if config.rows is None else list(read_rows(config.rows)))
    for row in rows:
        check_texts(row, template.fields)
    checkpoint = _find_model(config, adapter, progress)
    with new_folder(config.out, force=config.force, files=files) as folder:
        progress.stage("loading the model, and PEFT's")
        parts = _Parts.fit(config, adapter, checkpoint, template)
        progress.stage("comparing with PEFT")
        run = _make_run(config, parts, rows, folder)
        run.write(folder)
    return run


def _template(config: ImportConfig, adapter: Adapter) -> Template:
    """Parse the template and the labels, before anything is loaded for them."""
    if adapter.task == "SEQ_CLS" and config.template is not None:
        raise AdapterError(f"template {config.template!r}: a classification layer reads the text; leave out --template")
    if adapter.task == "CAUSAL_LM":
        if config.labels is None:
            raise AdapterError(f"{adapter.folder}: names no labels; write --labels name=word,name=word")
        Verbalizer.parse(config.labels, linear=False)
    template = Template.parse(config.template or "{text}")
    if template.n_prompt or template.has("mask"):
        raise AdapterError(f"template {config.template!r}: PEFT puts virtual tokens in front; leave out [P] and [MASK]")
    return template


def _find_model(config: ImportConfig, adapter: Adapter, progress: Progress) -> Checkpoint:
    name = config.model or adapter.base
    if name is None:
        raise AdapterError(f"{adapter.folder}: does not say which model it is for; give it with --model")
    from_hub = config.model is None and not Path(name).is_dir()
    return find_checkpoint(name, revision=adapter.config.revision if from_hub else None, stage=progress.stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What fits together.

    Attributes:
        adapter: as read.
        adapted: PEFT's model, of the adapter and a backbone of its own.
        backbone: as it was before.
        read: which state becomes logits.
        verbalizer: labels and, on a language model, their words.
        word_ids: of each label's words; none of a classification layer.
        source: the template with the virtual tokens where PEFT has them.
        compiled: likewise.
        prompt_rows: float [p, e]; one of zeros if no virtual token is a row.
        prefix: float [l, 2, 1, k, n, d]; None if no virtual token is keys and values.
    """

    adapter: Adapter
    adapted: PeftModel
    backbone: Backbone
    read: Read
    verbalizer: Verbalizer
    word_ids: list[list[int]]
    source: str
    compiled: CompiledTemplate
    prompt_rows: Tensor
    prefix: Tensor | None

    @classmethod
    def fit(cls, config: ImportConfig, adapter: Adapter, checkpoint: Checkpoint, template: Template) -> "_Parts":
        """Load everything and refuse what does not fit."""
        backbone = load_backbone(checkpoint, "words" if adapter.task == "CAUSAL_LM" else "linear")
        facts, words = backbone.facts, WordTokenizer(backbone.tokenizer_json)
        read = _read(adapter, backbone)
        adapted = adapter.load(checkpoint)
        verbalizer = _verbalizer(config, adapter, adapted)
        spaced, unknown = template.answer_spaced, facts.tokens.get("unk")
        word_ids = verbalizer.word_ids(words, spaced=spaced, unknown=unknown) if verbalizer.words else []
        prefix = _prefix(adapted) if adapter.kind == "PREFIX_TUNING" else None
        rows = torch.zeros(1, facts.embedding_width)
        source = template.source
        if adapter.kind in ("P_TUNING", "PROMPT_TUNING"):
            rows = _rows(adapter, facts)
            source = put_in_front(len(rows), template, facts, words)
        elif prefix is not None:
            source = f"[P*{prefix.shape[4]}]{template.source}"  # a space would be the text's
        n_prefix = 0 if prefix is None else prefix.shape[4]
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
            read=read,
            verbalizer=verbalizer,
            word_ids=word_ids,
            source=source,
            compiled=compiled,
            prompt_rows=rows,
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


def _read(adapter: Adapter, backbone: Backbone) -> Read:
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


def _make_run(config: ImportConfig, parts: _Parts, rows: list[Row], folder: Path) -> Run:
    """Merge, bake and prove; a backbone that LoRA changed goes into the folder."""
    texts = [row.texts for row in rows]
    compiled = parts.compiled
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)[:N_PROVED]
    expected = torch.cat([_peft_logits(parts, encoding) for encoding in whole])
    merges = parts.adapter.kind == "LORA"
    backbone = _merge(parts, folder / BACKBONE) if merges else parts.backbone
    leading_ids = compiled.leading_ids if backbone.facts.causal and parts.prefix is None else []
    brings = _bring(parts, backbone, leading_ids)
    folded = compiled.tokenizer_json(n_folded=len(leading_ids))
    encodings = TextEncoder.from_json(folded, fields=compiled.fields).encode(texts[:N_PROVED])
    classifier = backbone.classifier(parts.read)
    with torch.no_grad():
        got = torch.cat([forward(classifier, [encoding], brings) for encoding in encodings])
    return Run(
        config=_run_config(
            config, parts, _proved(parts.adapter, got - expected), backbone.facts if merges else None, len(leading_ids)
        ),
        metrics=None,
        trained={},
        baked=Baked(
            prompt_rows=brings.prompt_rows.numpy(),
            label_rows=brings.label_rows.numpy(),
            label_bias=brings.label_bias.numpy(),
            leading_states=None if brings.leading_states is None else brings.leading_states.numpy(),
        ),
        tokenizer_json=parts.backbone.tokenizer_json,
        check_rows=rows,
    )


@torch.no_grad()
def _peft_logits(parts: _Parts, encoding: Encoding) -> Tensor:
    """Let PEFT answer one row, unpadded; float [1, c]."""
    own = torch.tensor([[id_ for id_ in encoding.ids if id_ < parts.compiled.vocab]])  # it adds virtual tokens itself
    logits: Tensor = parts.adapted(input_ids=own, attention_mask=torch.ones_like(own)).logits
    if parts.verbalizer.words is None:
        return logits
    return torch.stack([logits[:, -1, ids].mean(1) for ids in parts.word_ids], dim=1)


def _merge(parts: _Parts, folder: Path) -> Backbone:
    """Write the backbone with LoRA's updates in it, and load it as anybody would."""
    merged = parts.adapted.merge_and_unload()
    linear = parts.verbalizer.words is None
    tunable = Tunable(backbone=replace(parts.backbone, model=merged.base_model if linear else merged), parameters={})
    return tunable.write(folder, "linear" if linear else "words")


@torch.no_grad()
def _bring(parts: _Parts, backbone: Backbone, leading_ids: list[int]) -> Brings:
    """Collect what the task brings to the classifier, its leading tokens computed once."""
    rows, states = parts.prompt_rows, parts.prefix
    label_rows, label_bias = parts.adapter.head() if not parts.word_ids else backbone.label_rows(parts.word_ids)
    if states is None and backbone.facts.causal:
        states = backbone.classifier("last").leading_states(leading_ids, rows)
    return Brings(prompt_rows=rows, label_rows=label_rows, label_bias=label_bias, leading_states=states)


def _proved(adapter: Adapter, differences: Tensor) -> Imported:
    """Describe where a run came from, once it answers as PEFT does.

    Raises:
        AdapterError: it does not.
    """
    largest = differences.abs().max().item()
    if not largest <= TOLERANCE:
        raise AdapterError(
            f"{adapter.folder}: PEFT's answers differ from those of what was made of it by {largest:.2g} in a logit, "
            f"need at most {TOLERANCE:g}; not supported, please report {CONFIG}"
        )
    return Imported(
        folder=str(adapter.folder),
        peft_type=adapter.kind,
        task_type=adapter.task,
        weights_sha256=hashlib.sha256((adapter.folder / WEIGHTS).read_bytes()).hexdigest(),
        max_abs_diff=largest,
        rows=len(differences),
        versions={name: version(name) for name in VERSIONED},
    )


def _run_config(
    config: ImportConfig, parts: _Parts, imported: Imported, tuned: BackboneFacts | None, n_folded: int
) -> RunConfig:
    words = parts.verbalizer.words
    return RunConfig(
        method=METHODS[parts.adapter.kind],
        imported=imported,
        tune_backbone=False,
        model=config.model or str(parts.adapter.base),
        revision=parts.backbone.commit,
        backbone=parts.backbone.facts,
        tuned=tuned,
        template=parts.source,
        labels=list(parts.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        read=parts.read,
        encoder=None,
        init=None,
        examples=[],
        n_prefix=parts.compiled.n_prefix,
        max_length=parts.compiled.max_length,
        truncate=parts.compiled.truncate,
        calibrate=False,
        abstain=None,
        n_folded=n_folded,
        training=None,
    )
