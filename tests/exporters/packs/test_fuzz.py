"""The reader of packs on damaged files: a PackError, or a pack that is what it seems; and install on those.

With a control in which install compares nothing, and a bundle is found that does not open.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from fuzz import damaged, damaged_json, settings_of, to_text
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from ptexport.exporters.packs.install import install
from ptexport.runtime.bundle.folder import Bundle
from ptexport.runtime.errors import BundleError, PackError
from ptexport.runtime.packs import pack_file
from ptexport.runtime.packs.pack_file import Pack
from ptexport.toolkit.run.run import Run


@pytest.fixture(scope="module")
def pack(llama_bundle: Path, llama_run: Path) -> Pack:
    """Of the bundle's own task."""
    run = Run.read(llama_run)
    return Pack.of(llama_bundle, run.config.facts.vocab, [msgspec.to_builtins(run.metrics)])


def check_pack(path: Path, backbone: Path) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        refusal = ""
        try:
            pack = Pack.read(path)
        except PackError as e:
            refusal = str(e)
        assert len(refusal) < 1000
        assert "\n" not in refusal
        if refusal:
            return
        path.write_bytes(Pack.of_parts(pack.record, pack.arrays).to_bytes())
        again = Pack.read(path)
        assert again.record == pack.record
        assert all(array.dtype == np.float32 for array in pack.arrays.values())
        out = path.parent / "new"
        with contextlib.suppress(PackError):
            install(path, backbone, out, force=True)
            Bundle.open(out)

    return check


def sealed(parts: tuple[Any, dict[str, np.ndarray]]) -> bytes:
    """With a digest that is right, so that all behind it is reached."""
    record, arrays = to_text(parts[0]), parts[1]
    digest = pack_file._digest(record, arrays)
    return save(arrays, {"format": pack_file.FORMAT, "record": record, "digest": digest})


@st.composite
def other_arrays(draw: st.DrawFn, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mostly as they are; else one left out, of another shape or type, of no value, or of a name that is none."""
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    new = {
        "as they are": array,
        "shape": array.reshape(-1),
        "type": array.astype(draw(st.sampled_from((np.float16, np.float64, np.int8)))),
        "none": array[:0],
        "nan": array * np.float32("nan"),
    }
    how = draw(
        st.sampled_from(("as they are", "as they are", "as they are", "shape", "type", "none", "nan", "left out"))
    )
    rest = {other: value for other, value in arrays.items() if other != name}
    return rest if how == "left out" else {**rest, name: np.ascontiguousarray(new[how])}


def fuzz_packs(pack: Pack, folder: Path, bundle: Path, how: settings) -> None:
    record = json.loads(msgspec.json.encode(pack.record))
    check = check_pack(folder / "task.ptpack", bundle)
    check(sealed((record, pack.arrays)))
    assert (folder / "new" / "manifest.json").is_file()
    parts = st.tuples(damaged_json(record), other_arrays(pack.arrays))
    how(given(parts.map(sealed))(check))()
    how(given(damaged(pack.to_bytes()))(check))()


def test_packs(pack: Pack, llama_bundle: Path, tmp_path: Path) -> None:
    fuzz_packs(pack, tmp_path, llama_bundle, settings_of(250))


def test_control_files_that_are_not_compared(
    pack: Pack, llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptexport.runtime.packs.assemble.entry_of", lambda data: mock.ANY)
    with pytest.raises(BundleError, match=r"need|differs"):
        fuzz_packs(pack, tmp_path, llama_bundle, settings_of(250, shrink=False))


@pytest.mark.soak
def test_many_more_packs(pack: Pack, llama_bundle: Path, tmp_path: Path) -> None:
    fuzz_packs(pack, tmp_path, llama_bundle, settings_of(3_000, soak=True))
