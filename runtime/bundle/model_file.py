"""model.onnx <-> what all tasks of a backbone have alike, and the arrays of one.

A task's arrays are initializers that are inputs as well: default values, which a caller may override at run time. The
file without them is its frame. It is read on the wire, since frames are compared and put together again byte for byte,
and protobuf's library puts what it does not know last; and since it is one package less on a device.

Source: numbers from onnx/onnx.proto.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.bundle.protobuf import VARINT, Field, delimited, fields, read_varint, varint
from ptexport.runtime.errors import BundleError

_GRAPH = 7  # of ModelProto
_INITIALIZER, _INPUT = 5, 11  # of GraphProto
_INPUT_NAME = 1  # of ValueInfoProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1  # of TensorProto.DataType
_MAX_DIMS = 32  # numpy's; the product of more takes time


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The parts of a model file.

    Attributes:
        head: what stands before the graph.
        before: the graph, up to the first of the arrays.
        after: the rest of the graph, without the arrays.
        tail: what stands after the graph.
        arrays: the task's, by name, in the file's order.
        inputs: names of all others, which a row brings.
    """

    head: bytes
    before: bytes
    after: bytes
    tail: bytes
    arrays: dict[str, NDArray[np.float32]]
    inputs: list[str]

    @classmethod
    def parse(cls, data: bytes, where: str) -> "OnnxFile":
        """Take a model file apart.

        Raises:
            BundleError: it is no ONNX model.
        """
        try:
            (graph,) = (field for field in fields(data, 0, len(data)) if field.number == _GRAPH)
            parts = list(fields(data, graph.content, graph.end))
            inputs = [_text(data, field, _INPUT_NAME) for field in parts if field.number == _INPUT]
            initializers = [field for field in parts if field.number == _INITIALIZER]
            found = {field: _array(data, field) for field in initializers}
        except (ValueError, OverflowError) as e:  # numpy's, of a shape such as [0, 2**63]
            raise BundleError(f"{where}: no ONNX model ({e}); copy the bundle again") from e
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
        """Hash of the file without the arrays: two files with the same differ in those alone."""
        return hashlib.sha256(self.with_arrays({})).hexdigest()

    def with_arrays(self, arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
        """Write the file with other arrays, byte for byte as onnx would."""
        graph = self.before + b"".join(_initializer(name, array) for name, array in arrays.items()) + self.after
        return self.head + delimited(_GRAPH, graph) + self.tail


def _text(data: bytes, message: Field, number: int) -> str:
    found = (data[f.content : f.end] for f in fields(data, message.content, message.end) if f.number == number)
    return next(found, b"").decode()


def _array(data: bytes, tensor: Field) -> tuple[str, NDArray[np.float32]] | None:
    """Read a tensor's name and values; None if they are no floats, or elsewhere."""
    parts = list(fields(data, tensor.content, tensor.end))
    if {field.number for field in parts} - {_DIMS} != {_DATA_TYPE, _NAME, _RAW_DATA}:
        return None
    dims = [read_varint(data, field.content)[0] for field in parts if field.number == _DIMS]
    of = {field.number: field for field in parts}
    raw = of[_RAW_DATA]
    if read_varint(data, of[_DATA_TYPE].content)[0] != _FLOAT or len(dims) > _MAX_DIMS:
        return None
    if math.prod(dims) * 4 != raw.end - raw.content:
        raise ValueError(f"a tensor of {raw.end - raw.content} bytes, need {dims}")
    values = np.frombuffer(data[raw.content : raw.end], "<f4").astype(np.float32)
    return data[of[_NAME].content : of[_NAME].end].decode(), values.reshape(dims)


def _initializer(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(varint(_DIMS << 3 | VARINT) + varint(size) for size in array.shape)
    data_type = varint(_DATA_TYPE << 3 | VARINT) + varint(_FLOAT)
    raw = array.astype("<f4").tobytes()
    tensor = dims + data_type + delimited(_NAME, name.encode()) + delimited(_RAW_DATA, raw)
    return delimited(_INITIALIZER, tensor)
