"""A pack + a bundle of the same backbone -> a bundle with the pack's tasks; without torch, Transformers or onnx.

Nothing is computed. The files are assembled from both, and each must have the hash that it had when `pack` compared it
with the model.
"""

from importlib.metadata import version
from pathlib import Path

import msgspec

from ptexport.exporters.card import model_card
from ptexport.exporters.packs.pack_file import Pack
from ptexport.runtime.bundle.folder import FILES, MANIFEST, MODEL, README, TOKENIZER, WEIGHTS, Bundle, file_entry
from ptexport.runtime.bundle.manifest import Installation, Manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import PackError
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
        OutputError: `out` exists, or cannot be written.
    """
    check_free(out, force=force, files=FILES)
    pack = Pack.read(path)
    bundle = Bundle.open(backbone)
    _check_fits(pack, path, bundle)
    with new_folder(out, force=force, files=FILES) as folder:
        _assemble(pack, path, bundle, folder)
        installed = Installation(
            pack=pack.digest,
            backbone=bundle.manifest.digest,
            golden_max_abs_diff=None,
            ptexport=version("ptexport"),
        )
        manifest = pack.record.manifest.renamed(out.resolve().name)
        manifest = msgspec.structs.replace(manifest, installed=installed)
        (folder / MANIFEST).write_bytes(manifest.to_json())
        if check:
            seen = Engine.open(folder, provider="cpu").info.golden_max_abs_diff
            installed = msgspec.structs.replace(installed, golden_max_abs_diff=seen)
            manifest = msgspec.structs.replace(manifest, installed=installed)
            (folder / MANIFEST).write_bytes(manifest.to_json())
        (folder / README).write_text(model_card(manifest, pack.record.metrics), encoding="utf-8")
    return manifest


_AGAIN = "name a bundle exported by the same versions of ptexport and torch, or pack again"


def _check_fits(pack: Pack, path: Path, bundle: Bundle) -> None:
    """Refuse a bundle of another backbone, or with a graph of another kind."""
    need, got = pack.record.manifest, bundle.manifest
    if need.backbone.fingerprint != got.backbone.fingerprint:
        raise PackError(
            f"{path}: is for {need.backbone.name} ({need.backbone.fingerprint[:16]}), {bundle.path} has "
            f"{got.backbone.name} ({got.backbone.fingerprint[:16]}); name a bundle of the pack's backbone"
        )
    several = [len(manifest.tasks) > 1 for manifest in (need, got)]
    if several[0] != several[1]:
        kinds = ["several tasks" if many else "one task" for many in several]
        raise PackError(f"{path}: has {kinds[0]}, {bundle.path} has {kinds[1]}; name a bundle of {kinds[0]}")
    for what in ("precision", "opset", "pooling"):
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


def _assemble(pack: Pack, path: Path, bundle: Bundle, folder: Path) -> None:
    """Write graph, tokenizer, configuration and weights, and compare their hashes with those of the exported bundle."""
    record = pack.record
    files = record.manifest.files
    (folder / MODEL).write_bytes(_model(pack, path, bundle))
    tokenizer_json = (bundle.path / TOKENIZER).read_text(encoding="utf-8")
    (folder / TOKENIZER).write_text(record.tokenizer.put_into(tokenizer_json), encoding="utf-8")
    for name, content in record.texts.items():
        (folder / name).write_text(content, encoding="utf-8")
    for name in (MODEL, TOKENIZER, *record.texts):
        if file_entry(folder / name) != files[name]:
            raise PackError(f"{path}: {name}, assembled with {bundle.path}, differs from the exported file; {_AGAIN}")
    clone(bundle.path / WEIGHTS, folder / WEIGHTS)


def _model(pack: Pack, path: Path, bundle: Bundle) -> bytes:
    """Replace the task arrays in the bundle's graph by the pack's."""
    file = OnnxFile.parse((bundle.path / MODEL).read_bytes(), str(bundle.path / MODEL))
    if set(file.arrays) != set(pack.arrays):
        raise PackError(
            f"{path}: has {', '.join(sorted(pack.arrays))}, {bundle.path} takes "
            f"{', '.join(sorted(file.arrays)) or 'nothing'}; {_AGAIN}"
        )
    same_weights = pack.record.manifest.files[WEIGHTS] == bundle.manifest.files[WEIGHTS]
    if not same_weights or file.frame_sha256 != pack.record.frame_sha256:
        raise PackError(f"{path}: its graph or weights differ from those of {bundle.path}; {_AGAIN}")
    return file.with_arrays({name: pack.arrays[name] for name in file.arrays})
