"""A run + a traced graph -> the files of a bundle; without torch, in about a second."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ptexport.exporters.passes.bind import BindInputsPass
from ptexport.exporters.passes.cleanup import DeadCodePass, ForgetIntermediateShapesPass
from ptexport.exporters.passes.edit import Edit, edit
from ptexport.exporters.passes.ort_rewrites import rewrites
from ptexport.exporters.passes.read_position import ReadPositionPass
from ptexport.exporters.trace.cached import Trace
from ptexport.runtime.bundle.folder import CONFIG, MODEL, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS, file_entry
from ptexport.runtime.bundle.manifest import FileEntry, PassEntry
from ptexport.runtime.bundle.measured import PrecisionEntry
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.run.config import RunConfig
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.store.folders import clone


def pipeline(run: Run, *, overridable: bool = True) -> list[Edit]:
    """List the edits that make a traced graph a task's, in order; see `BindInputsPass` for `overridable`."""
    one_position: list[Edit] = [] if run.config.pooling == "mean" else [ReadPositionPass()]
    rest: list[Edit] = [DeadCodePass(), ForgetIntermediateShapesPass()]
    return [*one_position, *rewrites(), BindInputsPass(run.arrays.by_name(), overridable=overridable), *rest]


@dataclass(frozen=True, slots=True, kw_only=True)
class BakedGraph:
    """What was written.

    Attributes:
        files: for the manifest.
        passes: what was done to the graph.
        lowered: what its precision came to; None: it is fp32.
    """

    files: dict[str, FileEntry]
    passes: list[PassEntry]
    lowered: PrecisionEntry | None = None


def bake(run: Run, trace: Trace, folder: Path, passes: Sequence[Edit] | None = None) -> BakedGraph:
    """Write what the runtime and Transformers read: graph, weights, tokenizer and configuration.

    Args:
        run: the task.
        trace: of the run's backbone.
        folder: an empty folder.
        passes: other edits than `pipeline`'s.

    Raises:
        ExportError: the trace is of another backbone or reads another position.
    """
    config, info = run.config, trace.info
    facts = config.facts
    got = (info.fingerprint, info.config_sha256, info.pooling, info.has_prefix_kv)
    if got != (facts.fingerprint, facts.config_sha256, config.pooling, run.arrays.has_prefix_kv):
        raise ExportError(f"{trace.path}: traces another backbone or position than the run's; export again")
    model = ir.load(trace.path / MODEL)
    done = edit(model, *(pipeline(run) if passes is None else passes))
    ir.save(model, folder / MODEL)  # external tensors keep pointing to the weights file's name and offsets
    clone(trace.path / WEIGHTS, folder / WEIGHTS)
    compiled = config.compile(run.tokenizer_json)
    (folder / TOKENIZER).write_text(compiled.tokenizer_json(n_folded=config.n_folded), encoding="utf-8")
    _write_json(folder / TOKENIZER_CONFIG, _tokenizer_config(config, info.inputs))
    _write_json(folder / CONFIG, _model_config(config))
    written = {name: file_entry(folder / name) for name in (MODEL, TOKENIZER, TOKENIZER_CONFIG, CONFIG)}
    return BakedGraph(files={**written, WEIGHTS: info.weights}, passes=done)


def _tokenizer_config(config: RunConfig, inputs: list[str]) -> dict[str, object]:
    # Any other class may rebuild the tokenizer from its vocabulary and silently lose the template.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "pad_token": config.facts.tokens["pad"],
        "model_max_length": config.max_length - config.n_prefix - config.n_folded,
    }


def _model_config(config: RunConfig) -> dict[str, object]:
    return {
        "model_type": config.facts.model_type,
        "id2label": {str(i): label for i, label in enumerate(config.labels)},
        "label2id": {label: i for i, label in enumerate(config.labels)},
        "vocab_size": config.facts.vocab,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
