"""Manifests of format 1, which ptexport 0.1 wrote, are upgraded; manifests with other fields are refused."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import digest_of

from ptexport.runtime import Engine
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.errors import BundleError

FORMAT_1 = Path(__file__).parents[2] / "golden" / "format-1"
DEFAULT_COLUMNS = {"text": "{text}", "text_b": None, "label": "label", "choices": "choices", "label_names": {}}
TASKS = {"reviews": ["reviews"], "both": ["tone", "mood"]}


def record_of(bundle: str) -> dict[str, Any]:
    """Read a golden manifest as it is, in format 1."""
    record: dict[str, Any] = json.loads((FORMAT_1 / bundle / "manifest.json").read_bytes())
    return record


def in_format_2(bundle: str) -> dict[str, Any]:
    """Upgrade a golden manifest to format 2."""
    record: dict[str, Any] = json.loads(read_manifest((FORMAT_1 / bundle / "manifest.json").read_bytes(), "").to_json())
    return record


def sealed(record: dict[str, Any]) -> bytes:
    """Encode a manifest with a digest that is right."""
    return json.dumps({**record, "digest": digest_of(record)}).encode()


@pytest.mark.parametrize("bundle", TASKS)
def test_the_upgrade_loses_nothing(bundle: str) -> None:
    old, new = record_of(bundle), in_format_2(bundle)
    assert new["format"] == 2
    assert read_manifest(sealed(old), "m").digest == old["digest"], "the bundle keeps its name in logs and packs"
    for name in ("name", "files", "backbone", "versions"):
        assert new[name] == old[name]
    if bundle == "both":
        data = {"columns": DEFAULT_COLUMNS, "seed": 0}
        assert (new["tasks"], new["fan_out"]) == ([{**task, **data} for task in old["tasks"]], old["fan_out"])
        assert new["graph"]["pooling"] == old["read"]
        return
    (task,) = new["tasks"]
    assert {name: task[name] for name in task if name in old} == {name: old[name] for name in task if name in old}
    assert task["prompt_tokens"] == old["graph"]["prompt_tokens"]
    assert task["folded_tokens"] == old["graph"]["folded_tokens"]
    assert new["graph"]["pooling"] == old["graph"]["read"]
    assert new["graph"]["passes"] == old["graph"]["passes"]


def test_int8_dynamic_is_refused_with_the_reason() -> None:
    record = record_of("reviews")
    record["graph"]["precision"] = "int8-dynamic"
    message = "m: got precision int8-dynamic, .* no longer supported; export again with --precision int8"
    with pytest.raises(BundleError, match=message):
        read_manifest(sealed(record), "m")


PARTS: list[tuple[str | int, ...]] = [(), ("graph",), ("backbone",), ("tasks", 0), ("tasks", 0, "parity")]
ABSENT = {("reviews", record_of): "tasks", ("both", record_of): "graph"}
"""What the two layouts of format 1 do not have."""


@pytest.mark.parametrize(
    ("bundle", "make", "place"),
    [
        (bundle, make, place)
        for bundle, make in itertools.product(TASKS, [record_of, in_format_2])
        for place in PARTS
        if ABSENT.get((bundle, make)) not in place
    ],
)
def test_an_unknown_or_a_missing_field_is_refused(
    bundle: str, make: Callable[[str], dict[str, Any]], place: tuple[str | int, ...]
) -> None:
    record = make(bundle)
    assert read_manifest(sealed(record), "m").name == bundle
    part: Any = record
    for key in place:
        part = part[key]
    part["more"] = 1
    with pytest.raises(BundleError, match="m: Object contains unknown field `more`"):
        read_manifest(sealed(record), "m")
    del part["more"]
    optional = {"digest", "engine", "among_neighbours", "all_lengths"}
    for name in set(part) - optional:
        value = part.pop(name)
        with pytest.raises(BundleError, match=f"m: .*{name}|m: got format None|m: Object contains unknown"):
            read_manifest(sealed(record), "m")
        part[name] = value


@pytest.mark.parametrize(
    ("bundle", "change", "message"),
    [
        ("both", lambda tasks: tasks[:1], r"lists 1 task\(s\), which does not match its files"),
        ("reviews", lambda tasks: [*tasks, {**tasks[0], "name": "other"}], r"lists 2 task\(s\)"),
        ("reviews", lambda tasks: [], "Expected `array` of length >= 1"),
        ("both", lambda tasks: [{**tasks[0], "labels": None}, tasks[1]], "a task of several has no labels"),
        ("both", lambda tasks: [tasks[0], tasks[0]], "lists the tasks tone, tone, need different names"),
        (
            "both",
            lambda tasks: [tasks[0], {**tasks[1], "name": "all"}],
            "lists the tasks tone, all, need different names other than",
        ),
    ],
)
def test_tasks_that_do_not_match_the_files_are_refused(
    bundle: str, change: Callable[[list[Any]], list[Any]], message: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(FORMAT_1 / bundle, tmp_path / "copy"))
    record = in_format_2(bundle)
    (copy / "manifest.json").write_bytes(sealed(record))
    Engine.open(copy)
    record["tasks"] = change(record["tasks"])
    (copy / "manifest.json").write_bytes(sealed(record))
    with pytest.raises(BundleError, match=message):
        Engine.open(copy)


@pytest.mark.parametrize("templates", [b"{}", b"[]", b"{", b'{"tasks": {}, "all": null}', b"[" * 100_000])
def test_templates_that_no_export_writes_are_refused(templates: bytes, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FORMAT_1 / "both", tmp_path / "copy"))
    (copy / "templates.json").write_bytes(templates)
    record = in_format_2("both")
    record["files"]["templates.json"] = {
        "sha256": hashlib.sha256(templates).hexdigest(),
        "size_bytes": len(templates),
    }
    (copy / "manifest.json").write_bytes(sealed(record))
    with pytest.raises(BundleError, match=r"templates\.json: cannot be read as templates"):
        Engine.open(copy)
