"""A shared library -> the libraries it needs, and whether they can be loaded.

If a library is missing, ONNX Runtime prints it on stderr and runs on the CPU. Its GPU libraries cannot be loaded here
as a test: they crash unless ONNX Runtime loads them. So this module reads the names of needed libraries from the file.

Source: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html, chapter 5.
"""

import contextlib
import ctypes
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_END, _NEEDED, _STRINGS = 0, 1, 5  # tags of the dynamic section
_RUN_PATHS = (15, 29)  # DT_RPATH and DT_RUNPATH


def needed_libraries(library: Path) -> list[str]:
    """List the libraries that a library was linked with, such as `libcublas.so.13`; empty if it is not 64-bit ELF."""
    return [text for tag, text in _texts(library) if tag == _NEEDED]


def run_paths(library: Path) -> list[Path]:
    """List the folders in which the loader looks for the needed libraries."""
    given = [text for tag, text in _texts(library) if tag in _RUN_PATHS]
    origin = str(library.parent)
    return [
        Path(folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin))
        for folders in given
        for folder in folders.split(":")
    ]


def _texts(library: Path) -> list[tuple[int, str]]:
    """Read the text entries of the dynamic section, with their tags."""
    if not library.is_file():
        return []
    with library.open("rb") as file:
        if file.read(6) != _ELF64_LITTLE_ENDIAN:
            return []
        segments = list(_segments(file))
        dynamic = next(((offset, size) for kind, offset, _, size in segments if kind == _DYNAMIC), (0, 0))
        entries = list(_entries(file, *dynamic))
        strings = next((value for tag, value in entries if tag == _STRINGS), 0)
        at = next(
            (
                strings - address + offset
                for kind, offset, address, size in segments
                if kind == _LOAD and address <= strings < address + size
            ),
            0,
        )
        return [(tag, _string(file, at + value)) for tag, value in entries if tag in (_NEEDED, *_RUN_PATHS)]


def _segments(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """List the segments: kind, offset in the file, address in memory, size in the file in bytes."""
    file.seek(32)
    (table,) = struct.unpack("<Q", file.read(8))
    file.seek(54)
    size, count = struct.unpack("<HH", file.read(4))
    for number in range(count):
        file.seek(table + number * size)
        kind, _, offset, address, _, length = struct.unpack("<IIQQQQ", file.read(40))
        yield kind, offset, address, length


def _entries(file: BinaryIO, offset: int, size: int) -> Iterator[tuple[int, int]]:
    file.seek(offset)
    for tag, value in struct.iter_unpack("<qQ", file.read(size // 16 * 16)):
        if tag == _END:
            return
        yield tag, value


def _string(file: BinaryIO, at: int) -> str:
    file.seek(at)
    return file.read(1024).partition(b"\0")[0].decode()


def loads(name: str, folders: Iterable[Path] = ()) -> bool:
    """Return whether a library can be loaded, by the loader or from one of the folders, with all that it needs."""
    for place in (name, *(str(folder / name) for folder in folders)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(place)
            return True
    return False
