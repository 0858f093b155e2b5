"""A backbone -> an ONNX graph that takes all task arrays as inputs; cached, since tracing takes a minute.

The graph does not depend on a task: prompt embeddings, label weights and past key/values are inputs of symbolic length.
"""

import warnings
from importlib.metadata import version
from pathlib import Path

import msgspec
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from onnxscript.optimizer import fold_constants
from torch import nn
from torch.export import Dim

from ptexport.exporters.trace.cached import TRACE_INFO, Trace, TraceInfo, TraceKind, trace_key
from ptexport.exporters.trace.multitask_classifier import MultitaskClassifier
from ptexport.runtime.bundle.folder import MODEL, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import Pooling
from ptexport.runtime.errors import ExportError, reason
from ptexport.toolkit.models.backbone import Backbone
from ptexport.toolkit.store.cache import cached_folder

IR_VERSION = 10

_EXAMPLE = 5  # a size other than 0 and 1, which torch.export treats as fixed


def trace(backbone: Backbone, pooling: Pooling, *, has_prefix_kv: bool, opset: int, kind: TraceKind = "task") -> Trace:
    """Trace a backbone, or find a cached trace; of two processes at once only one traces.

    Args:
        backbone: on the CPU.
        pooling: hidden state that becomes logits.
        has_prefix_kv: whether the graph takes past key/values.
        opset: 18 (portable, decomposed attention) or 23 (one Attention node per layer).
        kind: whether the graph serves one task or several, and in which rows.

    Raises:
        ExportError: torch cannot export the model.
    """
    key = trace_key(backbone.facts, pooling, has_prefix_kv=has_prefix_kv, opset=opset, kind=kind)
    versions = _versions()
    path = cached_folder(
        "traces", key, make=lambda at: _trace(backbone, pooling, has_prefix_kv, kind, opset, versions, at)
    )
    return Trace.read(path)


def trace_into(folder: Path, backbone: Backbone, pooling: Pooling, *, has_prefix_kv: bool, opset: int) -> Trace:
    """Trace a trained backbone, which no other run shares, into an empty folder."""
    _trace(backbone, pooling, has_prefix_kv, "task", opset, _versions(), folder)
    return Trace.read(folder)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ptexport", "torch", "transformers", "onnxscript", "onnx-ir")}


def _trace(
    backbone: Backbone,
    pooling: Pooling,
    has_prefix_kv: bool,
    kind: TraceKind,
    opset: int,
    versions: dict[str, str],
    folder: Path,
) -> None:
    inputs = _example(backbone, pooling, has_prefix_kv)
    module: nn.Module = backbone.classifier(pooling)
    if kind != "task":
        module = MultitaskClassifier(backbone.classifier(pooling), blocks=kind == "blocks").eval()
        inputs = _example_of_tasks(inputs)
    model = _clean(_exported(module, inputs, opset, many=kind != "task", name=backbone.facts.name))
    if model.ir_version != IR_VERSION or model.opset_imports[""] != opset:
        got = f"IR {model.ir_version}, opset {model.opset_imports['']}"
        raise ExportError(f"{backbone.facts.name}: torch.onnx.export wrote {got}, need IR {IR_VERSION}, opset {opset}")
    model.producer_name, model.producer_version = "ptexport", versions["ptexport"]
    ir.save(model, folder / MODEL, external_data=WEIGHTS)
    info = TraceInfo(
        fingerprint=backbone.facts.fingerprint,
        config_sha256=backbone.facts.config_sha256,
        pooling=pooling,
        has_prefix_kv=has_prefix_kv,
        kind=kind,
        opset=opset,
        ir_version=IR_VERSION,
        inputs=[name for name in inputs if name in ("input_ids", "attention_mask", "token_type_ids")],
        weights=file_entry(folder / WEIGHTS),
        versions=versions,
    )
    (folder / TRACE_INFO).write_bytes(msgspec.json.encode(info))


def _exported(module: nn.Module, inputs: dict[str, torch.Tensor], opset: int, *, many: bool, name: str) -> ir.Model:
    """Run torch.onnx.export.

    Raises:
        ExportError: it cannot export the module.
    """
    with warnings.catch_warnings():
        # torch 2.13 warns of a deprecated call of its own, and whenever two inputs share an axis name.
        warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        try:
            program = torch.onnx.export(
                module,
                kwargs=inputs,
                dynamic_shapes=_dynamic_shapes(inputs, many=many),
                input_names=list(inputs),
                output_names=["logits"],
                opset_version=opset,
                dynamo=True,
                optimize=False,  # takes longer than the rest, and ONNX Runtime does the same when it loads the graph
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as e:
            raise ExportError(f"{name}: torch cannot export it ({reason(e)}); not supported") from e
    assert program is not None  # dynamo=True always returns one
    return program.model


def _clean(model: ir.Model) -> ir.Model:
    """Fold constants, drop metadata, and remove what is redundant or unused."""
    _name_transposed(model)
    fold_constants(model, onnx_shape_inference=False)  # else constant sizes are computed in each run
    return ir.passes.Sequential(
        common_passes.ClearMetadataAndDocStringPass(),  # metadata has paths of the machine that traced
        common_passes.IdentityEliminationPass(),
        common_passes.CommonSubexpressionEliminationPass(),  # SmolLM2: 7,549 nodes become 2,915
        common_passes.RemoveUnusedNodesPass(),
    )(model).model


def _name_transposed(model: ir.Model) -> None:
    """Name each transposed weight after its parameter and transpose it once, before folding makes it a constant.

    Otherwise each of the layers that share a parameter (ALBERT) gets its own constant.
    """
    seen: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer():
            continue
        if weight in seen:
            ir.convenience.replace_all_uses_with(node.outputs[0], seen[weight])
        else:
            seen[weight] = node.outputs[0]
            node.outputs[0].name = f"{weight.name}.T"


@torch.no_grad()
def _example(backbone: Backbone, pooling: Pooling, has_prefix_kv: bool) -> dict[str, torch.Tensor]:
    """Make example inputs, in the order of the graph's; their values do not matter."""
    classifier, facts = backbone.classifier(pooling), backbone.facts
    prompt = torch.zeros(_EXAMPLE - 1, facts.embedding_width)
    ids = torch.full((_EXAMPLE - 3, _EXAMPLE + 2), facts.vocab)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if facts.token_types:
        example["token_type_ids"] = torch.zeros_like(ids)
    width = backbone.model.config.hidden_size
    if classifier.head is not None:
        width = classifier.head(inputs_embeds=torch.zeros(1, 1, width)).logits.shape[-1]  # ELECTRA's is narrower
    example |= {
        "prompt_embeddings": prompt,
        "label_weights": torch.zeros(_EXAMPLE + 1, width),
        "label_bias": torch.zeros(_EXAMPLE + 1),
    }
    if has_prefix_kv:
        example["prefix_kv"] = classifier.prefix_kv([facts.vocab] * _EXAMPLE, prompt)
    return example


def _example_of_tasks(one: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make the example inputs of a graph of several tasks from those of a graph of one."""
    n_tasks = _EXAMPLE + 3
    ids = one["input_ids"]
    example = {"input_ids": ids, "attention_mask": one["attention_mask"], "token_type_ids": torch.full_like(ids, 2)}
    example["prompt_embeddings"] = one["prompt_embeddings"]
    example |= {name: torch.stack([one[name]] * n_tasks) for name in ("label_weights", "label_bias")}
    if "prefix_kv" in one:
        prefix_kv = one["prefix_kv"]
        example["prefix_kv"] = torch.cat([prefix_kv] * n_tasks, dim=2)
        example["prefix_mask"] = torch.ones(n_tasks, prefix_kv.shape[4])
    return example


def _dynamic_shapes(example: dict[str, torch.Tensor], *, many: bool) -> dict[str, dict[int, Dim]]:
    batch, sequence, labels = Dim("batch"), Dim("sequence"), Dim("labels")
    if many:
        tasks, prefix = Dim("tasks"), Dim("prefix")
        of_tasks = {
            "prompt_embeddings": {0: Dim("prompt")},
            "label_weights": {0: tasks, 1: labels},
            "label_bias": {0: tasks, 1: labels},
            "prefix_kv": {2: tasks, 4: prefix},
            "prefix_mask": {0: tasks, 1: prefix},
        }
        return {name: of_tasks.get(name, {0: batch, 1: sequence}) for name in example}
    names = {
        "prompt_embeddings": {0: Dim("prompt")},
        "label_weights": {0: labels},
        "label_bias": {0: labels},
        "prefix_kv": {4: Dim("prefix")},
    }
    return {name: names.get(name, {0: batch, 1: sequence}) for name in example}
