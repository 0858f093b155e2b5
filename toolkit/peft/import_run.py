"""A PEFT adapter -> a Run, proved against PEFT's own forward pass; trains nothing.

Virtual tokens go where PEFT has them: rows before all else, [CLS] and BOS too, keys and values before the row. LoRA is
merged into a backbone of the run's own.
"""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Encoding
from torch import Tensor

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.errors import AdapterError
from ptexport.runtime.rows import Row, check_texts, read_rows
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.facts import BackboneFacts
from ptexport.toolkit.peft.adapter import CONFIG, METHODS, WEIGHTS, Adapter, read_adapter
from ptexport.toolkit.peft.plan import ImportConfig, Parts, find_model, parse_template
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.scoring import TaskTensors, forward
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.backbone import BACKBONE
from ptexport.toolkit.run.check_rows import choose_check_rows
from ptexport.toolkit.run.config import Imported, RunConfig
from ptexport.toolkit.run.run import FILES, RESUME, Run, TaskArrays
from ptexport.toolkit.store.folders import check_free, new_folder

TOLERANCE = 1e-3
"""Largest difference of a logit that rounding makes in fp32; an adapter that is read wrongly makes more."""
N_PROVED = 8
"""Check rows that PEFT's own forward pass answers too; export compares all of them with the run."""
VERSIONED = ("ptexport", "peft", "torch", "transformers", "tokenizers")


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
    template = parse_template(config, adapter)
    # The built-in rows' labels are of another task.
    built_in = [replace(row, label=None) for row in load_cities()]
    rows = choose_check_rows(built_in if config.rows is None else list(read_rows(config.rows)))
    for row in rows:
        check_texts(row, template.fields)
    checkpoint = find_model(config, adapter, progress)
    with new_folder(config.out, force=config.force, files=files) as folder:
        progress.stage("loading the model, and PEFT's")
        parts = Parts.fit(config, adapter, checkpoint, template)
        progress.stage("comparing with PEFT")
        run = _make_run(config, parts, rows, folder)
        run.write(folder)
    return run


def _make_run(config: ImportConfig, parts: Parts, rows: list[Row], folder: Path) -> Run:
    """Merge, bake and prove; a backbone that LoRA changed goes into the folder."""
    texts = [row.texts for row in rows]
    compiled = parts.compiled
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)[:N_PROVED]
    expected = torch.cat([_peft_logits(parts, encoding) for encoding in whole])
    merges = parts.adapter.kind == "LORA"
    backbone = _merge(parts, folder / BACKBONE) if merges else parts.backbone
    leading_ids = compiled.leading_ids if backbone.facts.causal and parts.prefix is None else []
    tensors = _task_tensors(parts, backbone, leading_ids)
    folded = compiled.tokenizer_json(n_folded=len(leading_ids))
    encodings = TextEncoder.from_json(folded, fields=compiled.fields).encode(texts[:N_PROVED])
    classifier = backbone.classifier(parts.pooling)
    with torch.no_grad():
        got = torch.cat([forward(classifier, [encoding], tensors) for encoding in encodings])
    return Run(
        config=_run_config(
            config, parts, _proved(parts.adapter, got - expected), backbone.facts if merges else None, len(leading_ids)
        ),
        metrics=None,
        trained={},
        arrays=TaskArrays(
            prompt_embeddings=tensors.prompt_embeddings.numpy(),
            label_weights=tensors.label_weights.numpy(),
            label_bias=tensors.label_bias.numpy(),
            prefix_kv=None if tensors.prefix_kv is None else tensors.prefix_kv.numpy(),
        ),
        tokenizer_json=parts.backbone.tokenizer_json,
        check_rows=rows,
    )


@torch.no_grad()
def _peft_logits(parts: Parts, encoding: Encoding) -> Tensor:
    """Let PEFT answer one row, unpadded; float [1, c]."""
    own = torch.tensor([[id_ for id_ in encoding.ids if id_ < parts.compiled.vocab]])  # it adds virtual tokens itself
    logits: Tensor = parts.adapted(input_ids=own, attention_mask=torch.ones_like(own)).logits
    if parts.verbalizer.words is None:
        return logits
    return torch.stack([logits[:, -1, ids].mean(1) for ids in parts.word_ids], dim=1)


def _merge(parts: Parts, folder: Path) -> Backbone:
    """Write the backbone with LoRA's updates in it, and load it as anybody would."""
    merged = parts.adapted.merge_and_unload()
    linear = parts.verbalizer.words is None
    trainable = TrainableBackbone(
        backbone=replace(parts.backbone, model=merged.base_model if linear else merged), parameters={}
    )
    return trainable.write(folder, "linear" if linear else "words")


@torch.no_grad()
def _task_tensors(parts: Parts, backbone: Backbone, leading_ids: list[int]) -> TaskTensors:
    """Collect what the task brings to the classifier, its leading tokens computed once."""
    rows, states = parts.prompt_embeddings, parts.prefix
    label_weights, label_bias = parts.adapter.head() if not parts.word_ids else backbone.label_weights(parts.word_ids)
    if states is None and backbone.facts.causal:
        states = backbone.classifier("last").prefix_kv(leading_ids, rows)
    return TaskTensors(prompt_embeddings=rows, label_weights=label_weights, label_bias=label_bias, prefix_kv=states)


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
    config: ImportConfig, parts: Parts, imported: Imported, trained_backbone: BackboneFacts | None, n_folded: int
) -> RunConfig:
    words = parts.verbalizer.words
    return RunConfig(
        method=METHODS[parts.adapter.kind],
        imported=imported,
        train_backbone=False,
        model=config.model or str(parts.adapter.base),
        revision=parts.backbone.commit,
        backbone=parts.backbone.facts,
        trained_backbone=trained_backbone,
        template=parts.source,
        labels=list(parts.verbalizer.labels),
        label_words=None if words is None else [list(label) for label in words],
        open_vocabulary=parts.verbalizer.open_vocabulary,
        pooling=parts.pooling,
        encoder=None,
        init=None,
        shots=[],
        prior_correction=False,
        n_prefix=parts.compiled.n_prefix,
        max_length=parts.compiled.max_length,
        truncate=parts.compiled.truncate,
        calibrate=False,
        abstain=None,
        n_folded=n_folded,
        training=None,
    )
