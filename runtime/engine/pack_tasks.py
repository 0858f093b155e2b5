"""A pack + an open bundle of the same backbone -> text encoders and graph of the pack's tasks, in the same session.

Nothing of the backbone is read, copied or hashed, and no file is written.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.engine_model import TENSORRT_RTX
from ptexport.runtime.bundle.folder import CONFIG, MODEL, TOKENIZER, Bundle, read_labels
from ptexport.runtime.bundle.manifest import digest_of
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.batching import Encoded, EncodedRow, as_they_are
from ptexport.runtime.engine.lifetime import Loaded
from ptexport.runtime.engine.task_encoders import TaskEncoders, longest_row
from ptexport.runtime.engine.text_encoder import Tokens
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.tensorrt_rtx import check_room
from ptexport.runtime.packs.assemble import assemble
from ptexport.runtime.packs.pack_file import Pack
from ptexport.runtime.packs.tokenizer_part import split


class PackTasks(NamedTuple):
    """The tasks of a pack, opened.

    Attributes:
        bundle: what `install` would write, with the small files in memory.
        encoders: text encoders of the tasks.
        graph: their graph.
    """

    bundle: Bundle
    encoders: TaskEncoders
    graph: Graph


def open_pack_tasks(path: Path, base: Bundle, loaded: Loaded) -> PackTasks:
    """Open a pack beside the tasks of an open bundle, and run nothing yet.

    Args:
        path: the pack.
        base: the bundle.
        loaded: its open graph and encoders.

    Raises:
        PackError: the file is not a pack, was changed, or is for another backbone or graph.
        BundleError: a file of the bundle cannot be read, or was changed since it was opened.
        ProviderError: the bundle's session cannot be shared, or the tasks do not fit into its engine.
    """
    pack = Pack.read(path)
    file = loaded.graph.shared_file()
    contents = assemble(pack, path, base, file)
    manifest = pack.record.manifest
    digest = digest_of(msgspec.to_builtins(manifest))  # in case it is wrong in the pack
    config = contents.get(CONFIG, b"")
    bundle = Bundle(
        path=path,
        manifest=msgspec.structs.replace(manifest, digest=digest),
        labels=[read_labels(config, path) if task.labels is None else task.labels for task in manifest.tasks],
        contents={name: content for name, content in contents.items() if name not in (MODEL, TOKENIZER)},
    )
    longest = longest_row(bundle)
    if base.manifest.engine is not None and loaded.graph.provider.name == TENSORRT_RTX:
        check_room(base.manifest.engine, pack.arrays, longest, str(path))
    others, _ = split(contents[TOKENIZER])
    encoders = loaded.encoders.of_bundle(bundle, others, pack.record.tokenizer.n_ids)
    return PackTasks(bundle, encoders, loaded.graph.with_arrays(pack.arrays, Buckets.up_to(longest)))


def one_by_one(batcher: Batcher, graph: Graph, rows: Sequence[Tokens]) -> list[NDArray[np.float32]]:
    """Compute the logits of rows on the engine thread, each in a batch of its own: no other text waits for two."""
    logits = []
    for row in rows:
        encoded = Encoded[NDArray[np.float32]]([EncodedRow(row, as_they_are)])
        logits += batcher.submit(graph, 1, partial(_given, encoded), always=True).result().items
    return logits


def _given(encoded: Encoded[NDArray[np.float32]], _first: int, _until: int) -> Encoded[NDArray[np.float32]]:
    return encoded
