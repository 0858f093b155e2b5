"""A baked graph -> the TensorRT RTX engine beside it, built once for all tasks of a backbone.

What a task brings (virtual tokens, leading keys and values, label rows) are inputs of the engine, so an engine is
valid for every bundle with the same weights and the same graph apart from those arrays. It is kept in the cache under a
hash of all that it depends on.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx_ir as ir

from ptexport.exporters.targets.tensorrt_rtx import Built, build, load_tensorrt_rtx
from ptexport.runtime.bundle.engine_model import engine_model
from ptexport.runtime.bundle.folder import ENGINE, ENGINE_MODEL, MODEL, file_entry
from ptexport.runtime.bundle.manifest import EngineEntry, FileEntry, ShapeRange
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ExportError, reason
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.toolkit.progress import Progress
from ptexport.toolkit.store.cache import cached_folder
from ptexport.toolkit.store.folders import clone

_RECORD = "engine.json"
_TOKENS = 128  # a shorter task gets an engine for as many, so that it can share it
_USUAL_SIZE, _LARGEST_SIZE = 16, 128  # virtual tokens, labels, tasks


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record beside a cached engine."""

    engine: EngineEntry
    file: FileEntry


def add_engine(
    folder: Path, weights: FileEntry, max_length: int, capabilities: Sequence[str], progress: Progress
) -> tuple[EngineEntry, dict[str, FileEntry]]:
    """Put the engine of a graph into its folder, and an EP-context model that names it.

    Args:
        folder: holds the graph and its weights.
        weights: the weights file.
        max_length: longest row, in ids.
        capabilities: compute capabilities of the cards.
        progress: receives stages.

    Returns:
        The engine, and its files, for the manifest.

    Raises:
        MissingExtraError: TensorRT RTX is not installed.
        ExportError: TensorRT RTX refuses the graph, or the cached engine is damaged.
        OutputError: the cache cannot be written.
    """
    rtx_version = str(load_tensorrt_rtx().__version__)
    model = folder / MODEL
    data = model.read_bytes()
    profile = profile_of(model, max_length)
    made_for = {
        "weights": weights.sha256,
        "frame": OnnxFile.parse(data, str(model)).frame_sha256,
        "compute_capabilities": list(capabilities),
        "tensorrt_rtx": rtx_version,
        "profile": profile,
    }
    key = hashlib.sha256(msgspec.json.encode(made_for, order="deterministic")).hexdigest()[:32]

    def make(place: Path) -> None:
        progress.stage("building the TensorRT RTX engine (once per backbone)")
        built = build(model, capabilities, profile)
        entry = EngineEntry(
            compute_capabilities=list(capabilities), tensorrt_rtx=rtx_version, layers=built.layers, profile=profile
        )
        _write(place, built, entry)

    place = cached_folder("tensorrt-rtx", key, make=make)
    clone(place / ENGINE, folder / ENGINE)
    (folder / ENGINE_MODEL).write_bytes(engine_model(data, str(model), ENGINE))
    files = {name: file_entry(folder / name) for name in (ENGINE_MODEL, ENGINE)}
    try:
        record = msgspec.json.decode((place / _RECORD).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError) as e:
        raise ExportError(f"{place}: not an engine ({reason(e)}); remove the folder and export again") from e
    if record.file != files[ENGINE]:
        raise ExportError(f"{place}: its engine was changed; remove the folder and export again")
    return record.engine, files


def profile_of(model: Path, max_length: int) -> dict[str, ShapeRange]:
    """Choose the sizes that an engine takes: those of a task, and room for other tasks of the backbone.

    Args:
        model: the graph.
        max_length: longest row, in ids.
    """
    graph = ir.load(model).graph
    _, usual, most = Buckets.up_to(_power_of_two(max(max_length, _TOKENS))).profile()
    profile = {}
    for value in graph.inputs:
        assert value.shape is not None  # torch.onnx always writes one
        array = value.const_value
        if array is None:
            profile[str(value.name)] = ShapeRange(least=[1, 1], usual=list(usual), most=list(most))
            continue
        fixed = [size if isinstance(size, int) else None for size in value.shape]
        sizes = [max(_LARGEST_SIZE, _power_of_two(size)) for size in array.shape.numpy()]
        profile[str(value.name)] = ShapeRange(
            least=[size or 1 for size in fixed],
            usual=[size or _USUAL_SIZE for size in fixed],
            most=[size or largest for size, largest in zip(fixed, sizes, strict=True)],
        )
    return profile


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _write(place: Path, built: Built, entry: EngineEntry) -> None:
    (place / ENGINE).write_bytes(built.content)
    record = _Record(engine=entry, file=file_entry(place / ENGINE))
    (place / _RECORD).write_bytes(msgspec.json.encode(record))
