"""model.onnx <-> the frame that all tasks of a backbone share, and the arrays of one task.

The arrays of a task are overridable initializers: inputs of the graph with default values. The rest of the file is its
frame. This module reads the wire format itself: frames are compared and written again byte for byte, and protobuf's
library would reorder unknown fields. It also saves a dependency on the device.

Source: field numbers from onnx/onnx.proto.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.protobuf import VARINT, WireField, delimited, fields, read_varint, varint
from ptexport.runtime.errors import BundleError

_GRAPH = 7  # of ModelProto
_INITIALIZER, _INPUT = 5, 11  # of GraphProto
_INPUT_NAME = 1  # of ValueInfoProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1  # of TensorProto.DataType
_MAX_DIMS = 32  # numpy's limit, which bounds the time to multiply them


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model file in parts.

    Attributes:
        head: bytes before the graph.
        before: bytes of the graph before the first array.
        after: other bytes of the graph, without the arrays.
        tail: bytes after the graph.
        arrays: arrays of the task by name, in the order of the file.
        inputs: names of the inputs without default values, which each batch gives.
    """

    head: bytes
    before: bytes
    after: bytes
    tail: bytes
    arrays: dict[str, NDArray[np.float32]]
    inputs: list[str]

    @classmethod
    def parse(cls, data: bytes, where: str) -> "OnnxFile":
        """Split a model file.

        Raises:
            BundleError: the file is not an ONNX model.
        """
        try:
            (graph,) = (field for field in fields(data, 0, len(data)) if field.number == _GRAPH)
            parts = list(fields(data, graph.content, graph.end))
            inputs = [_text(data, field, _INPUT_NAME) for field in parts if field.number == _INPUT]
            initializers = [field for field in parts if field.number == _INITIALIZER]
            found = {field: _array(data, field) for field in initializers}
        except (ValueError, OverflowError) as e:  # OverflowError: numpy, for a shape such as [0, 2**63]
            raise BundleError(f"{where}: not an ONNX model ({e}); copy the bundle again") from e
        arrays = {field: named for field, named in found.items() if named is not None and named[0] in inputs}
        at = next((field.start for field in arrays), graph.end)
        kept = [field for field in parts if field not in arrays]
        return cls(
            head=data[: graph.start],
            before=b"".join(data[field.start : field.end] for field in kept if field.start < at),
            after=b"".join(data[field.start : field.end] for field in kept if field.start > at),
            tail=data[graph.end :],
            arrays=dict(arrays.values()),
            inputs=[name for name in inputs if name not in dict(arrays.values())],
        )

    @property
    def frame_sha256(self) -> str:
        """Sha256 of the frame: files with equal frames differ in their arrays only."""
        return hashlib.sha256(self.with_arrays({})).hexdigest()

    def with_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
        """Encode the file with other arrays, byte for byte as onnx does."""
        graph = self.before + b"".join(_initializer(name, array) for name, array in arrays.items()) + self.after
        return self.head + delimited(_GRAPH, graph) + self.tail


def _text(data: bytes, message: WireField, number: int) -> str:
    found = (data[f.content : f.end] for f in fields(data, message.content, message.end) if f.number == number)
    return next(found, b"").decode()


def _array(data: bytes, tensor: WireField) -> tuple[str, NDArray[np.float32]] | None:
    """Read the name and values of a tensor; None: its values are not float32, or not in `raw_data`."""
    parts = list(fields(data, tensor.content, tensor.end))
    if {field.number for field in parts} - {_DIMS} != {_DATA_TYPE, _NAME, _RAW_DATA}:
        return None
    dims = [read_varint(data, field.content)[0] for field in parts if field.number == _DIMS]
    of = {field.number: field for field in parts}
    raw = of[_RAW_DATA]
    if read_varint(data, of[_DATA_TYPE].content)[0] != _FLOAT or len(dims) > _MAX_DIMS:
        return None
    if math.prod(dims) * 4 != raw.end - raw.content:
        raise ValueError(f"a tensor has {raw.end - raw.content} bytes, need {4 * math.prod(dims)} for the shape {dims}")
    values = np.frombuffer(data[raw.content : raw.end], "<f4").astype(np.float32)
    return data[of[_NAME].content : of[_NAME].end].decode(), values.reshape(dims)


def _initializer(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(varint(_DIMS << 3 | VARINT) + varint(size) for size in array.shape)
    data_type = varint(_DATA_TYPE << 3 | VARINT) + varint(_FLOAT)
    raw = array.astype("<f4").tobytes()
    tensor = dims + data_type + delimited(_NAME, name.encode()) + delimited(_RAW_DATA, raw)
    return delimited(_INITIALIZER, tensor)
