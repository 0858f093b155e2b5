"""Packs that are made in milliseconds: of an exported bundle, and variants with another bias of the first label."""

from pathlib import Path

import msgspec
import numpy as np

from ptexport.runtime.bundle.folder import MODEL, entry_of
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.packs.pack_file import Pack
from ptexport.toolkit.run.run import Run


def pack_of(bundle: Path, run: Path, out: Path) -> Path:
    """Write the pack of an exported bundle, without exporting again."""
    out.write_bytes(Pack.of(bundle, Run.read(run).config.facts.vocab, [None]).to_bytes())
    return out


def variant(pack: Path, bundle: Path, out: Path, bias: float, *, name: str | None = None, golden: float = 0.0) -> Path:
    """Write a pack like another whose first label has a logit larger by `bias`; it appears whole, by rename.

    Args:
        pack: the other pack.
        bundle: a bundle of its backbone.
        out: the new file.
        bias: the difference.
        name: name of the task; None: the same.
        golden: how far its golden rows are off.
    """
    made = Pack.read(pack)
    first = np.zeros_like(made.arrays["label_bias"])
    first[0] = bias
    arrays = {**made.arrays, "label_bias": made.arrays["label_bias"] + first}
    file = OnnxFile.parse((bundle / MODEL).read_bytes(), "")
    model = file.with_arrays({key: arrays[key] for key in file.arrays})
    manifest = made.record.manifest
    (task,) = manifest.tasks
    rows = [
        msgspec.structs.replace(
            row, logits={label: n + (bias + golden) * (label == task.labels[0]) for label, n in row.logits.items()}
        )
        for row in task.golden
    ]
    manifest = msgspec.structs.replace(
        manifest,
        files={**manifest.files, MODEL: entry_of(model)},
        tasks=[msgspec.structs.replace(task, golden=rows)],
    ).renamed(name or manifest.name)
    record = msgspec.structs.replace(made.record, manifest=manifest)
    part = out.with_name(f".{out.name}")
    part.write_bytes(Pack.of_parts(record, arrays).to_bytes())
    return part.rename(out)
