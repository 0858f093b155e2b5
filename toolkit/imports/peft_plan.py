"""The inputs of an import of an adapter -> loaded parts that fit together; reports what does not fit."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import CheckpointError
from ptexport.toolkit.imports.adapter import Adapter
from ptexport.toolkit.imports.adapter_files import PROMPT, WEIGHTS, AdapterFiles
from ptexport.toolkit.imports.conversion import write_special
from ptexport.toolkit.imports.inputs import AdapterInputs
from ptexport.toolkit.models.backbone import Backbone, load_backbone
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.prompt.prompt_model import choose_max_length
from ptexport.toolkit.template.compile import CompiledTemplate, compile_template
from ptexport.toolkit.template.template import Template
from ptexport.toolkit.template.verbalizer import Verbalizer
from ptexport.toolkit.template.words import WordTokenizer


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
    def fit(cls, inputs: AdapterInputs) -> "Parts":
        """Load the parts and check that they fit together.

        Raises:
            CheckpointError: the adapter is for another model, or its head is not supported.
            ModelError: the model cannot be loaded, or is not supported.
            TemplateError: the template does not fit the model.
            VerbalizerError: a label word is not one token.
        """
        files, template, verbalizer = inputs.files, inputs.template, inputs.verbalizer
        adapter = Adapter.read(files)
        backbone = load_backbone(inputs.checkpoint, "words" if files.task == "CAUSAL_LM" else "linear")
        facts, words = backbone.facts, WordTokenizer(backbone.tokenizer_json)
        pooling = _choose_pooling(files, backbone)
        adapted = adapter.load(inputs.checkpoint)
        spaced, unknown = template.answer_spaced, facts.tokens.get("unk")
        word_ids = verbalizer.word_ids(words, spaced=spaced, unknown=unknown) if verbalizer.words else []
        prefix_kv = _prefix_kv(adapted) if files.kind == "PREFIX_TUNING" else None
        embeddings = _prompt_embeddings(adapter, facts) if files.kind in ("P_TUNING", "PROMPT_TUNING") else None
        n_prefix = 0 if prefix_kv is None else prefix_kv.shape[4]
        source = _add_virtual_tokens(template, n_prefix, 0 if embeddings is None else len(embeddings), facts, words)
        length = choose_max_length(inputs.config.max_length, facts)
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


def _choose_pooling(files: AdapterFiles, backbone: Backbone) -> Pooling:
    """Return the hidden state that becomes logits in PEFT's model."""
    facts = backbone.facts
    if facts.causal:
        return "last"
    if files.task == "CAUSAL_LM":
        raise CheckpointError(f"{files.folder}: is for CAUSAL_LM, got the masked model {facts.name}; give a causal one")
    if files.kind != "LORA" and getattr(backbone.model, "pooler", None) is None:
        raise CheckpointError(f"model {facts.name}: {facts.model_type} has no pooler like BERT's; not supported")
    return backbone.own_pooling


def _prompt_embeddings(adapter: Adapter, facts: BackboneFacts) -> Tensor:
    path = adapter.files.folder / WEIGHTS
    embeddings = adapter.tensors[PROMPT].float()
    if embeddings.ndim != 2 or embeddings.shape[1] != facts.embedding_width:
        raise CheckpointError(
            f"{path}: {PROMPT} is {list(embeddings.shape)}, the embeddings of {facts.name} are "
            f"{facts.embedding_width} wide; give the model it was trained on with --model"
        )
    return embeddings


@torch.no_grad()
def _prefix_kv(adapted: PeftModel) -> Tensor:
    """Return the keys and values that PEFT computes, float [l, 2, 1, k, n, d]."""
    cache: Any = adapted.get_prompt(1)  # annotated as a tensor, which other kinds return
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
