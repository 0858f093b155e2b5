"""model.onnx <-> what all tasks of a backbone have alike, and the arrays of one; knows protobuf's wire format.

A task's arrays are initializers that are inputs as well: default values, which a caller may override at run time. The
file without them is its frame. It is read on the wire, since frames are compared and put together again byte for byte,
and protobuf's library puts what it does not know last; and since it is one package less on a device.

Source: https://protobuf.dev/programming-guides/encoding; numbers from onnx/onnx.proto.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.errors import BundleError

_GRAPH = 7  # of ModelProto
_INITIALIZER, _INPUT = 5, 11  # of GraphProto
_INPUT_NAME = 1  # of ValueInfoProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1  # of TensorProto.DataType
_VARINT, _BYTES = 0, 2  # wire types
_FIXED_BYTES = {1: 8, 5: 4}


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
            (graph,) = (field for field in _fields(data, 0, len(data)) if field.number == _GRAPH)
            fields = list(_fields(data, graph.content, graph.end))
            inputs = [_text(data, field, _INPUT_NAME) for field in fields if field.number == _INPUT]
            initializers = [field for field in fields if field.number == _INITIALIZER]
            found = {field: _array(data, field) for field in initializers}
        except (ValueError, IndexError) as e:
            raise BundleError(f"{where}: no ONNX model ({e}); copy the bundle again") from e
        arrays = {field: named for field, named in found.items() if named is not None and named[0] in inputs}
        at = next((field.start for field in arrays), graph.end)
        kept = [field for field in fields if field not in arrays]
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
        return self.head + _delimited(_GRAPH, graph) + self.tail


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire_type: int
    start: int
    content: int
    end: int


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    """List the fields of a message.

    Raises:
        ValueError: it is none.
    """
    while start < end:
        tag, content = _read_varint(data, start)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, stop = _read_varint(data, content)
        elif wire_type == _BYTES:
            size, content = _read_varint(data, content)
            stop = content + size
        elif wire_type in _FIXED_BYTES:
            stop = content + _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if stop > end:
            raise ValueError(f"cut short at byte {start}")
        yield _Field(tag >> 3, wire_type, start, content, stop)
        start = stop


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 10 bytes at byte {at - 10}")


def _text(data: bytes, message: _Field, number: int) -> str:
    found = (data[f.content : f.end] for f in _fields(data, message.content, message.end) if f.number == number)
    return next(found, b"").decode()


def _array(data: bytes, tensor: _Field) -> tuple[str, NDArray[np.float32]] | None:
    """Read a tensor's name and values; None if they are no floats, or elsewhere."""
    fields = list(_fields(data, tensor.content, tensor.end))
    if {field.number for field in fields} - {_DIMS} != {_DATA_TYPE, _NAME, _RAW_DATA}:
        return None
    dims = [_read_varint(data, field.content)[0] for field in fields if field.number == _DIMS]
    of = {field.number: field for field in fields}
    raw = of[_RAW_DATA]
    if _read_varint(data, of[_DATA_TYPE].content)[0] != _FLOAT:
        return None
    if math.prod(dims) * 4 != raw.end - raw.content:
        raise ValueError(f"a tensor of {raw.end - raw.content} bytes, need {dims}")
    values = np.frombuffer(data[raw.content : raw.end], "<f4").astype(np.float32)
    return data[of[_NAME].content : of[_NAME].end].decode(), values.reshape(dims)


def _initializer(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(_varint(_DIMS << 3 | _VARINT) + _varint(size) for size in array.shape)
    data_type = _varint(_DATA_TYPE << 3 | _VARINT) + _varint(_FLOAT)
    raw = array.astype("<f4").tobytes()
    tensor = dims + data_type + _delimited(_NAME, name.encode()) + _delimited(_RAW_DATA, raw)
    return _delimited(_INITIALIZER, tensor)


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
