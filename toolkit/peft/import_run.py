"""A PEFT adapter -> a Run that gives the same logits as PEFT; does not train.

Virtual tokens go where PEFT puts them: prompt embeddings first, before [CLS] and BOS; keys and values before the row.
LoRA is merged into a backbone that the run holds.
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
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row, check_texts
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.peft.adapter import CONFIG, METHODS, WEIGHTS, Adapter, read_adapter
from ptexport.toolkit.peft.plan import ImportConfig, Parts, find_model, parse_template
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.prompt.scoring import TaskTensors, forward
from ptexport.toolkit.prompt.trainable import TrainableBackbone
from ptexport.toolkit.run.check_rows import choose_check_rows
from ptexport.toolkit.run.config import Imported, RunConfig, TaskOptions
from ptexport.toolkit.run.run import BACKBONE, POSSIBLE_FILES, Run, TaskArrays
from ptexport.toolkit.store.folders import check_free, new_folder

TOLERANCE = 1e-3
"""Maximum difference of a logit through fp32 rounding; an adapter that is converted incorrectly gives more."""
N_COMPARED = 8
"""Number of check rows compared with PEFT's forward pass; `ptexport export` compares all of them with the run."""
VERSIONED = ("ptexport", "peft", "torch", "transformers", "tokenizers")


def import_peft(config: ImportConfig, progress: Progress) -> Run:
    """Import an adapter into a folder; the folder is written atomically.

    Raises:
        OutputError: the run exists, or cannot be written.
        AdapterError: the folder holds no adapter, an adapter that is not supported or is for another model, or the
            logits of the run differ from PEFT's.
        PtexportError: the model, labels, template or rows do not fit.
    """
    check_free(config.out, force=config.force, files=POSSIBLE_FILES)
    adapter = read_adapter(config.adapter)
    template = parse_template(config, adapter)
    # The labels of the built-in rows belong to another task.
    built_in = [replace(row, label=None) for row in load_cities()]
    rows = choose_check_rows(built_in if config.rows is None else list(read_rows(config.rows)))
    for row in rows:
        check_texts(row, template.fields)
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
    compiled = parts.compiled
    texts = [row.texts for row in rows][:N_COMPARED]
    whole = TextEncoder.from_json(compiled.tokenizer_json(), fields=compiled.fields).encode(texts)
    expected = torch.cat([_peft_logits(parts, encoding) for encoding in whole])
    merges = parts.adapter.kind == "LORA"
    backbone = _merge(parts, folder / BACKBONE) if merges else parts.backbone
    folded_ids = compiled.leading_ids if backbone.facts.causal and parts.prefix_kv is None else []
    tensors = _task_tensors(parts, backbone, folded_ids)
    folded = compiled.tokenizer_json(n_folded=len(folded_ids))
    encodings = TextEncoder.from_json(folded, fields=compiled.fields).encode(texts)
    classifier = backbone.classifier(parts.pooling)
    with torch.no_grad():
        got = torch.cat([forward(classifier, [encoding], tensors) for encoding in encodings])
    options = TaskOptions(
        method=METHODS[parts.adapter.kind],
        model=config.model or str(parts.adapter.base),
        template=parts.source,
        init=None,
        truncate=compiled.truncate,
    )
    run_config = RunConfig.of(
        options,
        backbone=parts.backbone.facts,
        commit=parts.backbone.commit,
        verbalizer=parts.verbalizer,
        compiled=compiled,
        pooling=parts.pooling,
        n_folded=len(folded_ids),
        trained_backbone=backbone.facts if merges else None,
        imported=_compare(parts.adapter, got - expected),
    )
    return Run(
        config=run_config,
        metrics=None,
        trained={},
        arrays=_to_arrays(tensors),
        tokenizer_json=parts.backbone.tokenizer_json,
        check_rows=rows,
    )


def _to_arrays(tensors: TaskTensors) -> TaskArrays:
    return TaskArrays(
        prompt_embeddings=tensors.prompt_embeddings.numpy(),
        label_weights=tensors.label_weights.numpy(),
        label_bias=tensors.label_bias.numpy(),
        prefix_kv=None if tensors.prefix_kv is None else tensors.prefix_kv.numpy(),
    )


@torch.no_grad()
def _peft_logits(parts: Parts, encoding: Encoding) -> Tensor:
    """Run PEFT's forward pass on one row, unpadded; float [1, c]."""
    own = torch.tensor([[id_ for id_ in encoding.ids if id_ < parts.compiled.vocab]])  # PEFT adds virtual tokens itself
    logits: Tensor = parts.adapted(input_ids=own, attention_mask=torch.ones_like(own)).logits
    if parts.verbalizer.words is None:
        return logits
    return torch.stack([logits[:, -1, ids].mean(1) for ids in parts.word_ids], dim=1)


def _merge(parts: Parts, folder: Path) -> Backbone:
    """Write the backbone with LoRA merged, and load it from there."""
    merged = parts.adapted.merge_and_unload()
    linear = parts.verbalizer.words is None
    trainable = TrainableBackbone(
        backbone=replace(parts.backbone, model=merged.base_model if linear else merged), parameters={}
    )
    return trainable.write(folder, "linear" if linear else "words")


@torch.no_grad()
def _task_tensors(parts: Parts, backbone: Backbone, folded_ids: list[int]) -> TaskTensors:
    """Compute the task tensors, with the keys and values of the folded tokens."""
    label_weights, label_bias = parts.adapter.head() if not parts.word_ids else backbone.label_weights(parts.word_ids)
    prefix_kv = parts.prefix_kv
    if prefix_kv is None and backbone.facts.causal:
        prefix_kv = backbone.classifier("last").prefix_kv(folded_ids, parts.prompt_embeddings)
    return TaskTensors(
        prompt_embeddings=parts.prompt_embeddings,
        label_weights=label_weights,
        label_bias=label_bias,
        prefix_kv=prefix_kv,
    )


def _compare(adapter: Adapter, differences: Tensor) -> Imported:
    """Describe where a run comes from, if its logits equal PEFT's.

    Raises:
        AdapterError: the logits differ.
    """
    largest = differences.abs().max().item()
    if not largest <= TOLERANCE:
        raise AdapterError(
            f"{adapter.folder}: the logits of the run differ from PEFT's by up to {largest:.2g}, need at most "
            f"{TOLERANCE:g}; not supported, please report {CONFIG}"
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
