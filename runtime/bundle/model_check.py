"""model.onnx -> BundleError, if the file holds anything that an export never writes.

The check runs before ONNX Runtime reads the file. Each field of each message must be listed here, have its wire type,
and occur once unless ONNX allows more. Otherwise two readers could read different models: one takes the last of two
values, another joins them, a third skips unknown fields. Time and memory are linear in the size of the file.

Source: field numbers from onnx/onnx.proto.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ptexport.runtime.bundle.protobuf import BYTES, VARINT, WireField, fields, read_varint
from ptexport.runtime.errors import BundleError

OPERATORS: dict[str, frozenset[str] | None] = {
    "": None,
    "ai.onnx": None,
    "com.microsoft": frozenset(("MatMulNBits", "MatMulIntegerToFloat")),
}
"""Allowed operators by domain; None: all. Some of ONNX Runtime's own operators open files, such as EPContext."""

MAX_BYTES = (1 << 31) - 1
"""Limit of protobuf."""
MAX_DEPTH = 8
"""Limit of nested messages. A subgraph of an `If` is three levels below its node; exports write no subgraphs."""
MAX_DIMS = 32


class _Rule(NamedTuple):
    wire_types: tuple[int, ...]
    once: bool
    message: str | None = None


_FLOAT32 = 5
_NUMBER, _FLOAT, _TEXT = _Rule((VARINT,), True), _Rule((_FLOAT32,), True), _Rule((BYTES,), True)
# Packed, or one by one: protobuf allows both.
_NUMBERS, _FLOATS, _TEXTS = _Rule((VARINT, BYTES), False), _Rule((_FLOAT32, BYTES), False), _Rule((BYTES,), False)


def _one(message: str) -> _Rule:
    return _Rule((BYTES,), True, message)


def _many(message: str) -> _Rule:
    return _Rule((BYTES,), False, message)


def _numbered(numbers: dict[_Rule, tuple[int, ...]]) -> dict[int, _Rule]:
    return {number: rule for rule, those in numbers.items() for number in those}


# Texts for people and the shapes of values are not read further.
_KNOWN: dict[str, dict[int, _Rule]] = {
    "Model": _numbered(
        {
            _NUMBER: (1, 5),
            _TEXT: (2, 3, 4, 6),
            _TEXTS: (14,),
            _one("Graph"): (7,),
            _many("OperatorSetId"): (8,),
        }
    ),
    "Graph": _numbered({_TEXT: (2, 10), _TEXTS: (11, 12, 13, 16), _many("Node"): (1,), _many("Tensor"): (5,)}),
    "Node": _numbered({_TEXT: (3, 4, 6, 7), _TEXTS: (1, 2, 9), _many("Attribute"): (5,)}),
    "Attribute": _numbered(
        {
            _NUMBER: (3, 20),
            _FLOAT: (2,),
            _TEXT: (1, 4, 13),
            _NUMBERS: (8,),
            _FLOATS: (7,),
            _TEXTS: (9,),
            _one("Tensor"): (5,),
            _one("Graph"): (6,),
            _many("Tensor"): (10,),
            _many("Graph"): (11,),
        }
    ),
    "Tensor": _numbered(
        {
            _NUMBER: (2, 14),
            _TEXT: (8, 9, 12),
            _NUMBERS: (1, 5, 7),
            _FLOATS: (4,),
            _TEXTS: (16,),
            _many("StringStringEntry"): (13,),
        }
    ),
    "OperatorSetId": _numbered({_TEXT: (1,), _NUMBER: (2,)}),
    "StringStringEntry": _numbered({_TEXT: (1, 2)}),
}
_NAMED = {
    ("Model", 20): "a graph to train",
    ("Model", 25): "functions of its own",
    ("Graph", 15): "sparse tensors",
    ("Attribute", 22): "a sparse tensor",
    ("Attribute", 23): "sparse tensors",
    ("Tensor", 6): "a tensor of strings",
}
_INITIALIZER = 5  # of Graph
_OP_TYPE, _DOMAIN = 4, 7  # of Node; OperatorSetId has its domain first
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14  # of Tensor
_VALUES = {4: "float_data", 5: "int32_data", 7: "int64_data", _RAW_DATA: "raw_data", _EXTERNAL_DATA: "external_data"}
_IN_A_FILE = 1  # as data location
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
"""Size of one value by TensorProto.DataType."""


def check_model(data: bytes, where: str, files: Mapping[str, int]) -> None:
    """Check that a model file holds only what an export writes.

    Args:
        data: content of the file.
        where: name of the file, for messages.
        files: sizes in bytes, by name, of the files that may hold tensors.

    Raises:
        BundleError: the file is not an ONNX model; it has an unknown operator or field, functions, or subgraphs that
            are nested too deep; or the name or values of a tensor occur twice, are missing, are in another file, or do
            not match its shape.
    """
    if len(data) > MAX_BYTES:
        raise BundleError(f"{where}: got {len(data)} bytes, need at most {MAX_BYTES}; export again")
    try:
        found = _Check(data, where, files).message("Model", 0, len(data), 0)
    except ValueError as e:
        if isinstance(e, BundleError):
            raise
        raise BundleError(f"{where}: not an ONNX model ({e}); copy the bundle again") from e
    if 7 not in found:
        raise BundleError(f"{where}: not an ONNX model (it has no graph); copy the bundle again")


class _Check:
    """One pass over a model file."""

    def __init__(self, data: bytes, where: str, files: Mapping[str, int]) -> None:
        self._data = data
        self._where = where
        self._files = files

    def message(self, kind: str, start: int, end: int, depth: int) -> dict[int, WireField]:
        """Check a message with all nested ones, and return the last field of each number."""
        if depth > MAX_DEPTH:
            raise self._refused(f"got messages nested {depth} deep, need at most {MAX_DEPTH}")
        known = _KNOWN[kind]
        found: dict[int, WireField] = {}
        names: set[str] = set()
        for field in fields(self._data, start, end):
            rule = known.get(field.number)
            if rule is None or field.wire_type not in rule.wire_types:
                what = _NAMED.get((kind, field.number), f"field {field.number} of {kind}Proto, which is unknown")
                raise self._refused(f"got {what}")
            if rule.once and field.number in found:
                raise self._refused(f"got field {field.number} of {kind}Proto twice, need it once")
            found[field.number] = field
            if rule.message is not None:
                inside = self.message(rule.message, field.content, field.end, depth + 1)
                if kind == "Graph" and field.number == _INITIALIZER:
                    name = self._text(inside, _NAME)
                    if name in names:
                        raise self._refused(f"got tensor {name!r} twice, need it once")
                    names.add(name)
        if kind == "Node":
            self._check_operator(self._text(found, _DOMAIN), self._text(found, _OP_TYPE))
        elif kind == "OperatorSetId":
            self._check_operator(self._text(found, 1), None)
        elif kind == "Tensor":
            self._check_tensor(found, start, end)
        return found

    def _check_operator(self, domain: str, op_type: str | None) -> None:
        known = OPERATORS.get(domain, frozenset())
        if domain not in OPERATORS or (op_type is not None and known is not None and op_type not in known):
            got = f"operators of {domain!r}" if op_type is None else f"operator {domain}::{op_type}"
            need = " or ".join(sorted(OPERATORS["com.microsoft"] or ()))
            raise self._refused(f"got {got}, need one of ONNX, or {need} of com.microsoft")

    def _check_tensor(self, found: dict[int, WireField], start: int, end: int) -> None:
        what = f"tensor {self._text(found, _NAME)!r}"
        places = [name for number, name in _VALUES.items() if number in found]
        if len(places) > 1:
            raise self._refused(f"{what} has values in {' and in '.join(places)}, need them once")
        dims = list(self._numbers(field for field in fields(self._data, start, end) if field.number == _DIMS))
        if len(dims) > MAX_DIMS:
            raise self._refused(f"{what} has {len(dims)} dimensions, need at most {MAX_DIMS}")
        data_type = self._number(found, _DATA_TYPE)
        if data_type not in _BITS:
            raise self._refused(f"{what} has data type {data_type}, need one of {sorted(_BITS)}")
        if not places and 0 not in dims:
            raise self._refused(f"{what} has no values")
        in_a_file = self._number(found, _DATA_LOCATION) == _IN_A_FILE
        if in_a_file != (places == ["external_data"]):
            raise self._refused(f"{what} has a data_location that does not match its values")
        need = (math.prod(dims) * _BITS[data_type] + 7) // 8
        if in_a_file:
            got = self._check_place(what, start, end)
        elif places == ["raw_data"]:
            got = found[_RAW_DATA].end - found[_RAW_DATA].content
        else:
            return
        if got != need:
            raise self._refused(f"{what} has {got} bytes, need {need} for the shape {dims}")

    def _check_place(self, what: str, start: int, end: int) -> int:
        """Check the place of a tensor in a file, and return its size in bytes."""
        place: dict[str, str] = {}
        for field in fields(self._data, start, end):
            if field.number == _EXTERNAL_DATA:
                entry = {part.number: part for part in fields(self._data, field.content, field.end)}
                key = self._text(entry, 1)
                if key in place:
                    raise self._refused(f"{what} has {key} twice, need it once")
                place[key] = self._text(entry, 2)
        if sorted(place) != ["length", "location", "offset"]:
            raise self._refused(f"{what} is in a file with {sorted(place)}, need length, location and offset")
        if place["location"] not in self._files:
            raise self._refused(f"{what} is in {place['location']!r}, need {' or '.join(self._files)}")
        if not all(
            place[key].isascii() and place[key].isdigit() and len(place[key]) < 20 for key in ("offset", "length")
        ):
            raise self._refused(
                f"{what} has length {place['length']!r} and offset {place['offset']!r}, need two numbers"
            )
        offset, length = int(place["offset"]), int(place["length"])
        size = self._files[place["location"]]
        if offset + length > size:
            raise self._refused(
                f"{what} has {length} bytes from {offset} of {place['location']}, which has {size} bytes"
            )
        return length

    def _number(self, found: dict[int, WireField], number: int) -> int:
        field = found.get(number)
        return 0 if field is None else read_varint(self._data, field.content)[0]

    def _numbers(self, repeated: Iterable[WireField]) -> Iterable[int]:
        for field in repeated:
            at = field.content
            while at < field.end:
                value, at = read_varint(self._data, at)
                yield value

    def _text(self, found: dict[int, WireField], number: int) -> str:
        field = found.get(number)
        return "" if field is None else self._data[field.content : field.end].decode()

    def _refused(self, what: str) -> BundleError:
        return BundleError(f"{self._where}: {what}; no export writes this, copy the bundle again from its source")
