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
from ptexport.runtime.rows.columns import Columns
from ptexport.toolkit.imports.adapter_files import METHODS, WEIGHTS
from ptexport.toolkit.imports.conversion import (
    N_COMPARED,
    Conversion,
    head_of,
    largest_difference,
    versions,
)
from ptexport.toolkit.imports.inputs import AdapterInputs
from ptexport.toolkit.imports.peft_plan import Parts
from ptexport.toolkit.methods import Head
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.models.facts import sha256_files
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.config import Imported, TaskOptions
from ptexport.toolkit.run.run import BACKBONE, POSSIBLE_FILES, Run
from ptexport.toolkit.store.folders import new_folder


def import_peft(inputs: AdapterInputs, progress: Progress) -> Run:
    """Import an adapter into a folder; the folder is written atomically.

    Raises:
        OutputError: the run exists, or cannot be written.
        CheckpointError: the adapter is for another model, its head is not supported, or the logits of the run differ
            from PEFT's.
        PtexportError: the model cannot be loaded, or the labels or the template do not fit it.
    """
    config = inputs.config
    with new_folder(config.out, force=config.force, files=POSSIBLE_FILES) as folder:
        progress.stage("loading the model, and PEFT's")
        parts = Parts.fit(inputs)
        progress.stage("comparing with PEFT")
        run = _make_run(inputs, parts, folder)
        run.write(folder)
    return run


def _make_run(inputs: AdapterInputs, parts: Parts, folder: Path) -> Run:
    """Convert the adapter, and compare the run with PEFT; a backbone that LoRA changes is written into the folder."""
    compiled, adapter, files, config = parts.compiled, parts.adapter, inputs.files, inputs.config
    texts = [row.texts for row in inputs.rows[:N_COMPARED]]
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)
    expected = torch.cat([_peft_logits(parts, encoding) for encoding in whole])
    merged = parts.adapted.merge_and_unload() if files.kind == "LORA" else None
    backbone = parts.backbone if merged is None else _write(merged, parts, folder / BACKBONE)
    if parts.word_ids:
        label_weights, label_bias = backbone.label_weights(parts.word_ids)
    else:
        head = adapter.head() if merged is None else head_of(merged, files.n_labels, config.source)
        label_weights, label_bias = head
    conversion = Conversion.of(
        backbone,
        compiled,
        parts.pooling,
        label_weights=label_weights,
        label_bias=label_bias,
        prompt_embeddings=parts.prompt_embeddings,
        prefix_kv=parts.prefix_kv,
    )
    largest = largest_difference(config.source, "PEFT", expected, conversion.logits(texts))
    options = TaskOptions(
        method=METHODS[files.kind],
        model=config.model or str(files.base),
        template=parts.source,
        columns=config.columns or Columns(),
        init=None,
        truncate=compiled.truncate,
    )
    imported = Imported(
        folder=config.source,
        peft_type=files.kind,
        task_type=files.task,
        weights_sha256=sha256_files([files.folder / WEIGHTS]),
        max_abs_diff=largest,
        rows=len(texts),
        versions=versions("peft"),
    )
    return conversion.run(options, imported, parts.verbalizer, inputs.rows, backbone=parts.backbone)


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
