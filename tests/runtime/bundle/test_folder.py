"""What a bundle reader must refuse, before ONNX Runtime sees a byte."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest

from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import file_entry
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.errors import BundleError

FILES = ["model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "config.json"]


@pytest.fixture
def bundle(llama_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_bundle, tmp_path / "copy"))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_a_missing_or_a_shortened_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match="its sha256 differs"):
        Engine.open(bundle)
    (bundle / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match="bytes, need"):
        Engine.open(bundle)
    (bundle / name).rename(bundle / "elsewhere")
    with pytest.raises(BundleError, match="missing"):
        Engine.open(bundle)
    (bundle / name).symlink_to("elsewhere")
    with pytest.raises(BundleError, match="not a regular file"):
        Engine.open(bundle)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_what_is_not_a_plain_file_is_not_opened(bundle: Path, name: str) -> None:
    """A pipe would be waited for, for ever."""
    (bundle / name).rename(bundle / "kept")
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match="not a regular file"):
        Engine.open(bundle)
    (bundle / name).unlink()
    (bundle / name).mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        Engine.open(bundle)
    (bundle / name).rmdir()
    (bundle / "kept").rename(bundle / name)
    (bundle.parent / "second").hardlink_to(bundle / name)
    with pytest.raises(BundleError, match=r"got 2 hard links, need one"):
        Engine.open(bundle)
    (bundle.parent / "second").unlink()
    Engine.open(bundle)


def test_a_linked_folder_is_followed(bundle: Path) -> None:
    """As deployments switch from one to the next: who names the folder is trusted, what is in it is not."""
    (bundle.parent / "current").symlink_to(bundle)
    assert Engine.open(bundle.parent / "current").manifest == Engine.open(bundle).manifest


@pytest.mark.parametrize("how", ["another file", "the same file"])
def test_a_file_that_changes_while_the_bundle_is_opened(
    bundle: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = onnxruntime.InferenceSession

    def deploying(*args: Any, **options: Any) -> Any:
        session = opened(*args, **options)
        data = (bundle / "tokenizer.json").read_bytes()
        if how == "another file":
            (bundle / "new").write_bytes(data)
            (bundle / "new").replace(bundle / "tokenizer.json")
        else:
            (bundle / "tokenizer.json").write_bytes(data)
        return session

    Engine.open(bundle)
    gc.collect()  # the session that was shared
    monkeypatch.setattr(onnxruntime, "InferenceSession", deploying)
    with pytest.raises(BundleError, match="was changed while the bundle was opened; open it again"):
        Engine.open(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nprompt": 3}, "unknown field `nprompt`"),
        ({"format": 3}, "got format 3, need 2"),
        ({"format": True}, "got format True, need 2"),
        ({"name": "other"}, "digest does not match"),
        ({"fan_out": "no"}, "Expected `bool`"),
        ({"tasks": []}, "Expected `array` of length >= 1"),
        ({"format": [[1]]}, "got format list, need 2"),
        ({"format": "1" * 99}, r"got format '1{39}, need 2"),
        ({"versions": {"ptexport": float("nan")}}, "NaN is not a JSON number"),
        ({"name": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_changed_manifest(bundle: Path, change: dict[str, object], message: str) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=message):
        Engine.open(bundle)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b" " * (1 << 20) + b"{}", "need at most"),
        (b"[" * 200_000, "not JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        ('{"format": 1}'.encode("utf-16"), "not JSON"),
    ],
)
def test_no_manifest_at_all(bundle: Path, data: bytes, message: str) -> None:
    (bundle / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        Engine.open(bundle)


@pytest.mark.parametrize(
    "data", [b"{}", b"[" * 50_000, b'{"id2label": {"0": "\xff"}}', b'{"id2label": {"1": "a"}}', b"\0"]
)
def test_labels_that_are_not_there(bundle: Path, data: bytes) -> None:
    """With a hash that is right."""
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    (bundle / "config.json").write_bytes(data)
    files = {**manifest.files, "config.json": file_entry(bundle / "config.json")}
    task = msgspec.structs.replace(manifest.task, labels=None)
    open_vocabulary = msgspec.structs.replace(manifest, files=files, tasks=[task])
    (bundle / "manifest.json").write_bytes(open_vocabulary.to_json())
    with pytest.raises(BundleError, match="got no labels by number"):
        Engine.open(bundle)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "extra.bin"])
def test_a_file_list_of_its_own(bundle: Path, name: str) -> None:
    """With a digest that is right: nothing but the known names is opened."""
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    files = {**manifest.files, name: manifest.files["config.json"]}
    (bundle / "manifest.json").write_bytes(msgspec.structs.replace(manifest, files=files).to_json())
    with pytest.raises(BundleError, match=r"lists .* need .*; export again"):
        Engine.open(bundle)


def test_the_runtime_loads_nothing_heavy_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', 0); import ptexport.runtime; "
        "import ptexport.runtime.server.app, ptexport.runtime.label_file, ptexport.toolkit.cli.main; "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], *({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    code = "import sys, ptexport.exporters.bake; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
