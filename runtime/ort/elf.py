"""A shared library -> the others it needs, and whether they can be loaded; knows ELF, nothing of ONNX Runtime.

ONNX Runtime says on stderr what it could not load, and runs on the CPU. Loading its library for a GPU here, to see what
fails, would crash where nothing does, since it expects ONNX Runtime to load it: so the names are read from the file.

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
    """List the libraries that one was linked with, such as `libcublas.so.13`; none of what is no 64-bit ELF."""
    return [text for tag, text in _texts(library) if tag == _NEEDED]


def run_paths(library: Path) -> list[Path]:
    """List the folders where one has the loader look for what it needs."""
    given = [text for tag, text in _texts(library) if tag in _RUN_PATHS]
    origin = str(library.parent)
    return [
        Path(folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin))
        for folders in given
        for folder in folders.split(":")
    ]


def _texts(library: Path) -> list[tuple[int, str]]:
    """Read the entries of the dynamic section that are text."""
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
    """List the segments: kind, offset in the file, address in memory, bytes in the file."""
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
    """Whether the loader finds a library, or one of the folders has it, and all that it needs itself."""
    for place in (name, *(str(folder / name) for folder in folders)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(place)
            return True
    return False
