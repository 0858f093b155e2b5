"""The TensorRT RTX engine of a bundle: does it fit this card and these tasks, and its graph.

Built without a GPU, not run on such a card yet. Nothing is built here. What a task brings is passed to each run as
inputs, so tasks of one backbone share an engine and a session.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import ENGINE_MODEL
from ptexport.runtime.bundle.manifest import EngineEntry
from ptexport.runtime.errors import ProviderError
from ptexport.runtime.ort.cuda_driver import read_gpu


def engine_for(model: Path, engine: EngineEntry | None, device: int) -> Path:
    """Return the file to open in place of a bundle's `model.onnx`, an EP-context model.

    Args:
        model: model file of the bundle.
        engine: engine that the bundle's manifest describes.
        device: number of the GPU.

    Raises:
        ProviderError: the bundle has no engine, there is no NVIDIA GPU, or the engine was built for others.
    """
    where = f"{model.parent} on provider tensorrt-rtx"
    if engine is None:
        raise ProviderError(
            f"{where}: this bundle has no engine, need one; export it with --target tensorrt-rtx --compute-capability"
        )
    has = f"this bundle has engines for compute capability {' and '.join(engine.compute_capabilities)}"
    try:
        gpu = read_gpu(device)
    except ProviderError as e:
        why = str(e).partition(";")[0]
        raise ProviderError(f"{where}: {has}, this machine has no GPU to run it ({why}); use provider cpu") from e
    if gpu.compute_capability not in engine.compute_capabilities:
        raise ProviderError(
            f"{where}: {has}, this machine has {gpu.compute_capability} ({gpu.name}); export it for this card with "
            "--compute-capability, or use provider cuda"
        )
    return model.parent / ENGINE_MODEL


def check_room(engine: EngineEntry, arrays: Mapping[str, NDArray[np.float32]], max_length: int, where: str) -> None:
    """Check that an engine takes the arrays of a task and its longest row.

    Args:
        engine: the engine.
        arrays: task arrays by the graph's input name.
        max_length: longest row, in ids.
        where: bundle or pack, for messages.

    Raises:
        ProviderError: it does not.
    """
    shapes = {"input_ids": (1, max_length), **{name: array.shape for name, array in arrays.items()}}
    for name, shape in shapes.items():
        of = engine.profile.get(name)
        fits = of is not None and len(of.most) == len(shape)
        if of is None or not fits or not all(a <= n <= b for a, n, b in zip(of.least, shape, of.most, strict=True)):
            room = "no such input" if of is None else f"{of.least} to {of.most}"
            raise ProviderError(
                f"{where}: {name} has the shape {list(shape)}, the engine takes {room}; export the task with --target "
                "tensorrt-rtx"
            )
