"""A baked graph + ids -> its intermediate values; knows ONNX Runtime, nothing of precisions."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptexport.runtime.bundle.folder import MODEL
from ptexport.runtime.ort.cpus import available_cpus
from ptexport.runtime.ort.io_binding import Ids
from ptexport.runtime.ort.providers import load_onnxruntime

_OBSERVED = "observed.onnx"  # a temporary file, beside the weights that it shares with the graph


def observe(folder: Path, names: Collection[str], batches: Iterable[Ids]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Run a graph and yield intermediate values.

    Args:
        folder: holds the graph and its weights; a temporary file is written there.
        names: names of float32 values.
        batches: batches of ids.

    Yields:
        For each batch, the values by name.
    """
    model = ir.load(folder / MODEL)
    for name, value in _values(model, names).items():
        _add_output(model, value, name)
    yield from _run(model, folder, list(names), batches)


def largest(folder: Path, names: Collection[str], batches: Iterable[Ids]) -> dict[str, float]:
    """Find the largest magnitude of intermediate values over all batches, NaN if one is NaN; see `observe`."""
    model = ir.load(folder / MODEL)
    for name, value in _values(model, names).items():
        magnitude = ir.node("Abs", [value])
        most = ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0})
        magnitude.outputs[0].name = f"{name}.magnitude"
        model.graph.extend([magnitude, most])
        _add_output(model, most.outputs[0], f"{name}.largest")
    found = dict.fromkeys(names, 0.0)
    for batch in _run(model, folder, [f"{name}.largest" for name in names], batches):
        found = {name: float(np.maximum(most, batch[f"{name}.largest"])) for name, most in found.items()}
    return found


def _values(model: ir.Model, names: Collection[str]) -> dict[str, ir.Value]:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    return {name: values[name] for name in names}


def _add_output(model: ir.Model, value: ir.Value, name: str) -> None:
    value.name, value.dtype = name, ir.DataType.FLOAT
    model.graph.outputs.append(value)


def _run(
    model: ir.Model, folder: Path, names: list[str], batches: Iterable[Ids]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = available_cpus(), 3
    ir.save(model, folder / _OBSERVED)
    try:
        session = onnxruntime.InferenceSession(str(folder / _OBSERVED), options, ["CPUExecutionProvider"])
    finally:
        (folder / _OBSERVED).unlink()
    inputs = [value.name for value in session.get_inputs()]
    for ids in batches:
        yield dict(zip(names, session.run(names, {name: ids[name] for name in inputs}), strict=True))
