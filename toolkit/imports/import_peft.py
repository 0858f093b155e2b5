"""A PEFT adapter -> a Run that gives the same logits as PEFT; does not train.

Virtual tokens go where PEFT puts them: prompt embeddings first, before [CLS] and BOS; keys and values before the row.
LoRA is merged into a backbone that the run holds.
"""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedModel

from ptexport.runtime.engine.text_encoder import TextEncoder
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.imports.adapter import read_adapter
from ptexport.toolkit.imports.conversion import (
    N_COMPARED,
    Conversion,
    head_of,
    largest_difference,
    read_check_rows,
    versions,
)
from ptexport.toolkit.imports.peft_plan import ImportConfig, Parts, find_model, parse_template
from ptexport.toolkit.imports.source import METHODS, WEIGHTS
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.facts import sha256_files
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.config import Imported, TaskOptions
from ptexport.toolkit.run.run import BACKBONE, POSSIBLE_FILES, Run
from ptexport.toolkit.store.folders import check_free, new_folder


def import_peft(config: ImportConfig, progress: Progress) -> Run:
    """Import an adapter into a folder; the folder is written atomically.

    Raises:
        OutputError: the run exists, or cannot be written.
        CheckpointError: the folder holds no adapter, an adapter that is not supported or is for another model, or the
            logits of the run differ from PEFT's.
        PtexportError: the model, labels, template or rows do not fit.
    """
    check_free(config.out, force=config.force, files=POSSIBLE_FILES)
    adapter = read_adapter(config.adapter)
    template = parse_template(config, adapter)
    rows = read_check_rows(config.rows, template.fields)
    checkpoint = find_model(config, adapter, progress)
    with new_folder(config.out, force=config.force, files=POSSIBLE_FILES) as folder:
        progress.stage("loading the model, and PEFT's")
        parts = Parts.fit(config, adapter, checkpoint, template)
        progress.stage("comparing with PEFT")
        run = _make_run(config, parts, rows, folder)
        run.write(folder)
    return run


def _make_run(config: ImportConfig, parts: Parts, rows: list[Row], folder: Path) -> Run:
    """Convert the adapter, and compare the run with PEFT; a backbone that LoRA changes is written into the folder."""
    compiled, adapter = parts.compiled, parts.adapter
    texts = [row.texts for row in rows][:N_COMPARED]
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)
    expected = torch.cat([_peft_logits(parts, encoding) for encoding in whole])
    merged = parts.adapted.merge_and_unload() if adapter.kind == "LORA" else None
    backbone = parts.backbone if merged is None else _write(merged, parts, folder / BACKBONE)
    if parts.word_ids:
        label_weights, label_bias = backbone.label_weights(parts.word_ids)
    else:
        label_weights, label_bias = adapter.head() if merged is None else head_of(merged, str(adapter.folder))
    conversion = Conversion.of(
        backbone,
        compiled,
        parts.pooling,
        label_weights=label_weights,
        label_bias=label_bias,
        prompt_embeddings=parts.prompt_embeddings,
        prefix_kv=parts.prefix_kv,
    )
    largest = largest_difference(adapter.folder, "PEFT", expected, conversion.logits(texts))
    options = TaskOptions(
        method=METHODS[adapter.kind],
        model=config.model or str(adapter.base),
        template=parts.source,
        init=None,
        truncate=compiled.truncate,
    )
    imported = Imported(
        folder=str(adapter.folder),
        peft_type=adapter.kind,
        task_type=adapter.task,
        weights_sha256=sha256_files([adapter.folder / WEIGHTS]),
        max_abs_diff=largest,
        rows=len(texts),
        versions=versions("peft"),
    )
    return conversion.run(options, imported, parts.verbalizer, rows, backbone=parts.backbone)


@torch.no_grad()
def _peft_logits(parts: Parts, encoding: Encoding) -> Tensor:
    """Run PEFT's forward pass on one row, unpadded; float [1, c]."""
    own = torch.tensor([[id_ for id_ in encoding.ids if id_ < parts.compiled.vocab]])  # PEFT adds virtual tokens itself
    logits: Tensor = parts.adapted(input_ids=own, attention_mask=torch.ones_like(own)).logits
    if parts.verbalizer.words is None:
        return logits
    return torch.stack([logits[:, -1, ids].mean(1) for ids in parts.word_ids], dim=1)


def _write(merged: PreTrainedModel, parts: Parts, folder: Path) -> Backbone:
    """Write a model with LoRA merged, and load it from there as a backbone; with the head, if that has other layers."""
    head: Head = "words"
    if parts.verbalizer.words is None:
        head = "linear" if parts.backbone.facts.causal else "pooled"
    model = merged.base_model if head == "linear" else merged
    return TrainableBackbone(backbone=replace(parts.backbone, model=model), parameters={}).write(folder, head)
