"""Bytes <-> fields, in the wire format of protobuf.

Stricter than protobuf's own library, which truncates longer numbers to 64 bits: here they are an error, so that no
other reader can get different values from a checked message.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


class WireField(NamedTuple):
    """Position of a field in a message, in bytes from its start.

    Attributes:
        number: field number.
        wire_type: `VARINT`, `BYTES`, or a wire type of fixed size.
        start: start of the tag.
        content: start of the value; for `BYTES`, after the size.
        end: end of the value.
    """

    number: int
    wire_type: int
    start: int
    content: int
    end: int


def fields(data: bytes, start: int, end: int) -> Iterator[WireField]:
    """List the fields of a message.

    Raises:
        ValueError: the bytes are not a message.
    """
    while start < end:
        tag, content = read_varint(data, start)
        wire_type = tag & 7
        if wire_type == BYTES:
            size, content = read_varint(data, content)
            stop = content + size
        elif wire_type == VARINT:
            _, stop = read_varint(data, content)
        elif wire_type in _FIXED_BYTES:
            stop = content + _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if stop > end:
            raise ValueError(f"cut short at byte {start}")
        yield WireField(tag >> 3, wire_type, start, content, stop)
        start = stop


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of at most 64 bits, and return it with the position of its end.

    Raises:
        ValueError: the number is longer, or cut short.
    """
    try:
        value = data[at]
        if value < 0x80:  # the common case
            return value, at + 1
        value &= 0x7F
        for shift in range(7, 70, 7):
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at + 1
    except IndexError as e:
        raise ValueError(f"cut short at byte {len(data)}") from e
    raise ValueError(f"a number of more than 64 bits before byte {at + 1}")


def delimited(number: int, content: bytes) -> bytes:
    """Encode a field of wire type `BYTES`."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Encode a number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
