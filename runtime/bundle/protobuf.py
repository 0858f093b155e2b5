"""Protobuf's wire format: bytes <-> fields; knows nothing of what a message means.

Stricter than protobuf's library: what that would cut to 64 bits is refused, so that nobody reads another message than
the one that was looked at.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


class Field(NamedTuple):
    """Where a field stands.

    Attributes:
        number: of the field.
        wire_type: `VARINT`, `BYTES`, or one of those of a fixed size.
        start: of its tag.
        content: of its value; behind the size, of `BYTES`.
        end: of both.
    """

    number: int
    wire_type: int
    start: int
    content: int
    end: int


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """List the fields of a message.

    Raises:
        ValueError: it is none.
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
        yield Field(tag >> 3, wire_type, start, content, stop)
        start = stop


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of at most 64 bits; where it ends comes second.

    Raises:
        ValueError: it is longer, or cut short.
    """
    try:
        value = data[at]
        if value < 0x80:  # nearly all of them
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
    """Write a field of wire type `BYTES`."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Write a number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
