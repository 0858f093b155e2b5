"""The values of the Open Inference Protocol, whichever way they travel; and binary tensors <-> their elements.

Source: Open Inference Protocol, version 2 (kserve/open-inference-protocol), and its binary tensor data extension
(Triton, docs/protocol/extension_binary_data.md). Messages never repeat content of a request, names included: any field
may hold a private text by mistake.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptexport.runtime.errors import LargeRequestError, RequestError

MAX_TEXTS = 1024
"""Most texts, or rows of ids, of a request."""
MAX_ELEMENTS = 1 << 17
"""Most elements of an input: 1,024 rows of 128 ids. They are checked one by one while other requests wait."""

_FORMATS: dict[str, str] = {"BOOL": "<?", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor.

    Attributes:
        name: of the input or output.
        datatype: the protocol's name of the type of its elements.
        shape: its shape; [] for one element.
        data: its elements, row-major: strings for BYTES, else numbers or booleans.
    """

    name: str
    datatype: str
    shape: list[int]
    data: Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """One requested output.

    Attributes:
        name: of the output.
        classification: number of classes to return as strings in its place (Triton's classification extension); 0:
            the output itself.
    """

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One inference request.

    Attributes:
        inputs: the input tensors.
        outputs: the requested outputs; empty: the default ones.
        parameters: parameters of the request by name.
        id: the caller's name for it; None: it has none.
    """

    inputs: list[Tensor]
    outputs: list[OutputRequest] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """One response."""

    model: str
    version: str
    id: str | None
    outputs: list[Tensor]


def elements(where: str, datatype: str, raw: bytes | memoryview) -> list[Any]:
    """Read the elements of a binary tensor: little-endian, strings each after its length.

    Raises:
        RequestError: the datatype is another one, or the bytes do not hold whole elements.
    """
    if datatype == "BYTES":
        return _strings(where, raw)
    if datatype not in _FORMATS:
        raise RequestError(f"{where}: got another datatype, need BYTES or INT64; convert it")
    format_ = np.dtype(_FORMATS[datatype])
    check_elements(where, len(raw) // format_.itemsize)
    if len(raw) % format_.itemsize:
        raise RequestError(f"{where}: got {len(raw)} bytes, need a multiple of {format_.itemsize}; send whole elements")
    values: list[Any] = np.frombuffer(raw, dtype=format_).tolist()
    return values


def check_elements(where: str, n: int) -> None:
    """Check the number of elements of an input, before they are looked at.

    Raises:
        LargeRequestError: there are too many.
    """
    if n > MAX_ELEMENTS:
        raise LargeRequestError(f"{where}: got {n:,} elements, need at most {MAX_ELEMENTS:,}; send several requests")


def binary(tensor: Tensor) -> bytes:
    """Write the elements of a tensor as `elements` reads them."""
    if tensor.datatype == "BYTES":
        encoded = [text.encode() for text in tensor.data]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return np.array(tensor.data, dtype=_FORMATS[tensor.datatype]).tobytes()


def text_of(where: str, raw: bytes | memoryview) -> str:
    """Decode a string.

    Raises:
        RequestError: it is not UTF-8.
    """
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as e:
        raise RequestError(f"{where}: got bytes that are not UTF-8, need text; encode it") from e


def _strings(where: str, raw: bytes | memoryview) -> list[str]:
    texts: list[str] = []
    at = 0
    while at < len(raw):
        if len(texts) == MAX_TEXTS:
            raise LargeRequestError(f"{where}: got more than {MAX_TEXTS} strings; send several requests")
        if at + 4 > len(raw):
            raise RequestError(f"{where}: got a string without its length; put 4 bytes of length before each")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > len(raw) - at:
            raise RequestError(
                f"{where}: got a length past the end of the bytes; put its own length before each string"
            )
        texts.append(text_of(where, raw[at : at + length]))
        at += length
    return texts
