"""A pack + a bundle of the same backbone -> a bundle with the pack's tasks; without torch, Transformers or onnx."""

from importlib.metadata import version
from pathlib import Path

import msgspec

from ptexport.exporters.card import model_card
from ptexport.runtime.bundle.folder import ENGINE_FILES, FILES, MANIFEST, MODEL, README, WEIGHTS, Bundle
from ptexport.runtime.bundle.manifest import FileEntry, Installation, Manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import PackError, reason
from ptexport.runtime.ort.tensorrt_rtx import check_room
from ptexport.runtime.packs.assemble import assemble
from ptexport.runtime.packs.pack_file import Pack
from ptexport.toolkit.run.metrics import Metrics
from ptexport.toolkit.store.folders import check_free, clone, new_folder


def install(path: Path, backbone: Path, out: Path, *, check: bool = False, force: bool = False) -> Manifest:
    """Make a bundle from a pack. The bundle appears only when it is complete.

    Args:
        path: the pack.
        backbone: folder of a bundle of the same backbone, opset, precision and number of tasks (one or several); it is
            verified and not changed.
        out: folder of the new bundle; its name is the model name that the server uses.
        check: run the pack's golden rows first.
        force: replace a bundle that exists.

    Raises:
        PackError: the file is not a pack, was changed, or is for another backbone or graph.
        BundleError: the other bundle does not match its manifest, or the golden rows have other logits here.
        ProviderError: the bundle has an engine, and the tasks do not fit into it.
        OutputError: `out` exists, or cannot be written.
    """
    check_free(out, force=force, files=FILES)
    pack = Pack.read(path)
    bundle = Bundle.open(backbone)
    contents = assemble(pack, path, bundle, OnnxFile.parse(bundle.read(MODEL), str(bundle.path / MODEL)))
    metrics = _metrics(pack, path)
    with new_folder(out, force=force, files=FILES) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        clone(bundle.path / WEIGHTS, folder / WEIGHTS)
        files = _copy_engine(pack, path, bundle, folder)
        installed = Installation(
            pack=pack.digest,
            backbone=bundle.manifest.digest,
            golden_max_abs_diff=None,
            ptexport=version("ptexport"),
        )
        manifest = pack.record.manifest.renamed(out.resolve().name)
        manifest = msgspec.structs.replace(
            manifest, installed=installed, engine=bundle.manifest.engine, files={**manifest.files, **files}
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())
        if check:
            seen = Engine.open(folder, provider="cpu").info.golden_max_abs_diff
            installed = msgspec.structs.replace(installed, golden_max_abs_diff=seen)
            manifest = msgspec.structs.replace(manifest, installed=installed)
            (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, metrics), encoding="utf-8")
    return manifest


def _copy_engine(pack: Pack, path: Path, bundle: Bundle, folder: Path) -> dict[str, FileEntry]:
    """Copy the bundle's engine, which serves the pack's tasks without a build; returns its files.

    Raises:
        ProviderError: the tasks do not fit into the engine.
    """
    engine = bundle.manifest.engine
    if engine is None:
        return {}
    check_room(engine, pack.arrays, max(task.max_length for task in pack.record.manifest.tasks), str(path))
    for name in ENGINE_FILES:  # equal graphs without task arrays have equal EP-context models
        clone(bundle.path / name, folder / name)
    return {name: bundle.manifest.files[name] for name in ENGINE_FILES}


def _metrics(pack: Pack, path: Path) -> list[Metrics | None]:
    """Read the metrics of a pack's tasks."""
    try:
        return msgspec.convert(pack.record.metrics, list[Metrics | None])
    except msgspec.ValidationError as e:
        raise PackError(f"{path}: {reason(e)[:200]}; pack again with this version of ptexport") from e
