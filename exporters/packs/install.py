"""A pack + any bundle of its backbone -> the bundle it was made of; without torch, Transformers or onnx.

Nothing is computed: files are put together from both, and must have the hashes that those had which were proved.
"""

from importlib.metadata import version
from pathlib import Path

import msgspec

from ptexport.exporters.card import model_card
from ptexport.exporters.packs.pack_file import TEXTS, Pack
from ptexport.runtime.bundle.folder import (
    FILES,
    MANIFEST,
    MODEL,
    README,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    file_entry,
    holds_tasks,
)
from ptexport.runtime.bundle.manifest import Installation, Manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BundleError, PackError
from ptexport.toolkit.store.folders import check_free, clone, new_folder


def install(path: Path, backbone: Path, out: Path, *, check: bool = False, force: bool = False) -> Manifest:
    """Make a bundle of a pack; whole or not at all.

    Args:
        path: of the pack.
        backbone: folder of a bundle of the same backbone, opset and precision; it is verified, and not changed.
        out: the new bundle's folder; its name is what the server calls the model.
        check: run the pack's golden rows before the bundle is there.
        force: replace a bundle that exists.

    Raises:
        PackError: it is no pack, altered, or for another backbone or graph.
        BundleError: the other bundle is not what its manifest says, holds many tasks, or the golden rows differ.
        OutputError: `out` exists, or cannot be written.
    """
    check_free(out, force=force, files=FILES)
    pack = Pack.read(path)
    if holds_tasks(backbone):
        raise BundleError(f"{backbone}: holds many tasks, need a bundle of one; export one of its runs alone")
    bundle = Bundle.open(backbone)
    model = _model(pack, path, bundle)
    record = pack.record
    proved = record.manifest
    with new_folder(out, force=force, files=FILES) as folder:
        (folder / MODEL).write_bytes(model)
        (folder / TOKENIZER).write_text(record.tokenizer.put_into(backbone), encoding="utf-8")
        for name in TEXTS:
            (folder / name).write_text(record.texts[name], encoding="utf-8")
        for name in (MODEL, TOKENIZER, *TEXTS):
            if file_entry(folder / name) != proved.files[name]:
                raise PackError(f"{path}: {name} made of it and {backbone} is not the one it was proved with; {_AGAIN}")
        clone(backbone / WEIGHTS, folder / WEIGHTS)
        installed = Installation(
            pack=pack.digest,
            backbone=bundle.manifest.digest,
            golden_max_abs_diff=None,
            ptexport=version("ptexport"),
        )
        manifest = msgspec.structs.replace(proved, name=out.resolve().name, installed=installed)
        (folder / MANIFEST).write_bytes(manifest.to_json())
        if check:
            seen = Engine.open(folder, provider="cpu").info.golden_max_abs_diff
            installed = msgspec.structs.replace(installed, golden_max_abs_diff=seen)
            manifest = msgspec.structs.replace(manifest, installed=installed)
            (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, record.metrics), encoding="utf-8")
    return manifest


_AGAIN = "name a bundle exported by the same versions of ptexport and torch, or pack again"


def _model(pack: Pack, path: Path, bundle: Bundle) -> bytes:
    """Put the pack's arrays in the place of the bundle's, once it is clear that they belong there."""
    need, got = pack.record.manifest, bundle.manifest
    if need.backbone.fingerprint != got.backbone.fingerprint:
        raise PackError(
            f"{path}: is for {need.backbone.name} ({need.backbone.fingerprint[:16]}), {bundle.path} is of "
            f"{got.backbone.name} ({got.backbone.fingerprint[:16]}); name a bundle of the pack's backbone"
        )
    for what in ("precision", "opset", "read"):
        wanted, found = getattr(need.graph, what), getattr(got.graph, what)
        if wanted != found:
            raise PackError(f"{path}: is for {what} {wanted}, {bundle.path} has {found}; name another, or pack again")
    products = [m.graph.lowered.products if m.graph.lowered else {} for m in (need, got)]
    if products[0] != products[1]:
        said = [", ".join(f"{n} in {recipe}" for recipe, n in sorted(some.items())) for some in products]
        raise PackError(
            f"{path}: has products {said[0]}, {bundle.path} {said[1]}; name another, or make one of them again with "
            "another --max-accuracy-drop or --keep-fp32"
        )
    file = OnnxFile.parse((bundle.path / MODEL).read_bytes(), str(bundle.path / MODEL))
    if set(file.arrays) != set(pack.arrays):
        raise PackError(
            f"{path}: brings {', '.join(sorted(pack.arrays))}, {bundle.path} takes "
            f"{', '.join(sorted(file.arrays)) or 'nothing'}; name a bundle of a task of the same kind"
        )
    if need.files[WEIGHTS] != got.files[WEIGHTS] or file.frame_sha256 != pack.record.frame_sha256:
        raise PackError(f"{path}: its graph or weights differ from those of {bundle.path}; {_AGAIN}")
    return file.with_arrays({name: pack.arrays[name] for name in file.arrays})
