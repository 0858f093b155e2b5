"""A pack + a bundle of the same backbone -> the files of the pack's own bundle, in memory.

Nothing is computed. The files are assembled from both, and each must have the hash that it had when `pack` compared it
with the model.
"""

from pathlib import Path

from ptexport.runtime.bundle.folder import MODEL, TOKENIZER, WEIGHTS, Bundle, entry_of
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import PackError, reason
from ptexport.runtime.packs.pack_file import Pack

_AGAIN = "name a bundle exported by the same versions of ptexport and torch, or pack again"


def assemble(pack: Pack, path: Path, bundle: Bundle, file: OnnxFile) -> dict[str, bytes]:
    """Assemble all hashed files but the weights, which are the bundle's.

    Args:
        pack: the pack.
        path: its file, for messages.
        bundle: a verified bundle of the pack's backbone.
        file: its parsed model file.

    Returns:
        Contents by file name.

    Raises:
        PackError: the pack is for another backbone or graph.
        BundleError: a file of the bundle cannot be read, or was changed since it was verified.
    """
    check_fits(pack, path, bundle.manifest, str(bundle.path))
    record = pack.record
    made = {MODEL: _model(pack, path, bundle, file)}
    tokenizer_json = bundle.read(TOKENIZER)
    try:
        made[TOKENIZER] = record.tokenizer.put_into(tokenizer_json)
        made.update({name: content.encode() for name, content in record.texts.items()})
    except (ValueError, RecursionError) as e:
        raise PackError(f"{path}: cannot be assembled with {bundle.path} ({reason(e)}); {_AGAIN}") from e
    for name, content in made.items():
        if entry_of(content) != record.manifest.files[name]:
            raise PackError(f"{path}: {name}, assembled with {bundle.path}, differs from the exported file; {_AGAIN}")
    return made


def check_fits(pack: Pack, path: Path, got: Manifest, where: str) -> None:
    """Refuse a bundle of another backbone, or with a graph of another kind.

    Args:
        pack: the pack.
        path: its file, for messages.
        got: manifest of the bundle.
        where: the bundle's folder, for messages.

    Raises:
        PackError: the bundle is one.
    """
    need = pack.record.manifest
    if need.backbone.fingerprint != got.backbone.fingerprint:
        raise PackError(
            f"{path}: is for {need.backbone.name} ({need.backbone.fingerprint[:16]}), {where} has "
            f"{got.backbone.name} ({got.backbone.fingerprint[:16]}); name a bundle of the pack's backbone"
        )
    several = [len(manifest.tasks) > 1 for manifest in (need, got)]
    if several[0] != several[1]:
        kinds = ["several tasks" if many else "one task" for many in several]
        raise PackError(f"{path}: has {kinds[0]}, {where} has {kinds[1]}; name a bundle of {kinds[0]}")
    for what in ("precision", "opset", "pooling"):
        wanted, found = getattr(need.graph, what), getattr(got.graph, what)
        if wanted != found:
            raise PackError(f"{path}: is for {what} {wanted}, {where} has {found}; name another, or pack again")
    products = [m.graph.lowered.products if m.graph.lowered else {} for m in (need, got)]
    if products[0] != products[1]:
        said = [", ".join(f"{n} in {recipe}" for recipe, n in sorted(some.items())) for some in products]
        raise PackError(
            f"{path}: has products {said[0]}, {where} {said[1]}; name another, or make one of them again with "
            "another --max-accuracy-drop or --keep-fp32"
        )


def _model(pack: Pack, path: Path, bundle: Bundle, file: OnnxFile) -> bytes:
    """Replace the task arrays in the bundle's graph by the pack's."""
    if set(file.arrays) != set(pack.arrays):
        raise PackError(
            f"{path}: has {', '.join(sorted(pack.arrays))}, {bundle.path} takes "
            f"{', '.join(sorted(file.arrays)) or 'nothing'}; {_AGAIN}"
        )
    same_weights = pack.record.manifest.files[WEIGHTS] == bundle.manifest.files[WEIGHTS]
    if not same_weights or file.frame_sha256 != pack.record.frame_sha256:
        raise PackError(f"{path}: its graph or weights differ from those of {bundle.path}; {_AGAIN}")
    return file.with_arrays({name: pack.arrays[name] for name in file.arrays})
