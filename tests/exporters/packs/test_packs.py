"""A pack and a bundle of its backbone make, byte for byte, what export makes; and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save
from tiny import Quiet, train_tiny, unigram

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.export import export
from ptexport.exporters.packs.install import install
from ptexport.exporters.packs.pack import pack
from ptexport.runtime.bundle.folder import MULTITASK_FILES, ONE_TASK_FILES, file_entry
from ptexport.runtime.bundle.manifest import Precision
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.errors import BundleError, ExportError, OutputError, PackError
from ptexport.runtime.packs.pack_file import Pack
from ptexport.runtime.packs.tokenizer_part import PackTokenizer
from ptexport.toolkit.run.run import Run
from ptexport.toolkit.template.compile import compile_template
from ptexport.toolkit.template.template import Template

TEXTS = ["the film was bright", "", "a story", "[P 0] <mask>"]
CASES: dict[str, tuple[str, list[tuple[str, dict[str, object]]]]] = {
    # The pack's task first, then the one whose bundle is on the device.
    "other leading rows": ("llama", [("{text} It was [P*3]", {}), ("[P*2] Review: {text} It was [P*2]", {})]),
    "other labels": (
        "bert",
        [("[P] {text} [MASK]", {"labels": "positive=great,negative=bad,c=Asia"}), ("{text} [P*4] [MASK]", {})],
    ),
    "other prefix": ("bert", [("[P*3] {text} [MASK]", {"method": m}) for m in ("p-tuning-v2", "prefix")]),
    "a vocabulary that is a list": ("xlm-roberta", [("[P] {text} [MASK]", {}), ("{text} [P*4] [MASK]", {})]),
}


@pytest.fixture(scope="module")
def other_run(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task on the backbone of `llama_bundle`, with nothing before its text."""
    return train_tiny(llama, rows_file, "{text} It was [P*3]", tmp_path_factory.mktemp("packs") / "run")


@pytest.fixture(scope="module")
def other_pack(other_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(other_run, tmp_path_factory.mktemp("packs") / "task.ptpack")


def packed(run: Path, out: Path, opset: int = 18) -> Path:
    pack(ExportConfig(runs=(run,), out=out, opset=opset), Quiet())
    return out


@pytest.mark.parametrize("case", CASES)
def test_install_writes_what_export_writes(
    case: str, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    model, tasks = CASES[case]
    for name, (template, options) in zip(("task", "other"), tasks, strict=True):
        train_tiny(model_of(model), rows_file, template, tmp_path / f"{name}-run", **options)
        export(ExportConfig(runs=(tmp_path / f"{name}-run",), out=tmp_path / name), Quiet())
    packed(tmp_path / "task-run", tmp_path / "task.ptpack")
    assert (tmp_path / "task.ptpack").stat().st_size < 50_000
    (tmp_path / "other" / "model.sig").write_text("of other files than the new bundle's")
    manifest = install(tmp_path / "task.ptpack", tmp_path / "other", tmp_path / "new", check=True)
    assert not (tmp_path / "new" / "model.sig").exists()
    for name in ONE_TASK_FILES:
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "task" / name).read_bytes(), name
    assert (tmp_path / "task" / "model.onnx").read_bytes() != (tmp_path / "other" / "model.onnx").read_bytes()
    assert (tmp_path / "new" / "model.onnx.data").stat().st_nlink == 1
    exported = read_manifest((tmp_path / "task" / "manifest.json").read_bytes(), "")
    assert manifest.installed is not None
    assert manifest.installed.golden_max_abs_diff < 1e-4
    assert manifest.installed.backbone == Engine.open(tmp_path / "other").manifest.digest
    assert manifest.task.name == "new"
    plain = msgspec.structs.replace(manifest.renamed("task"), installed=None, digest="")
    assert plain == msgspec.structs.replace(exported, digest="")
    got, need = Engine.open(tmp_path / "new"), Engine.open(tmp_path / "task")
    np.testing.assert_array_equal(got.logits(TEXTS[:1]), need.logits(TEXTS[:1]))
    card = (tmp_path / "task" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "new" / "README.md").read_text(encoding="utf-8") == renamed(card)


def renamed(card: str) -> str:
    """Return the card of the bundle "task" as that of "new"."""
    return re.sub(r'(# |/|"|name: )task(["`\n])', r"\1new\2", card)


def test_a_pack_in_integers(other_run: Path, llama_run: Path, tmp_path: Path) -> None:
    """Installed, its files have the hashes of those that were proved, and answer as they did."""
    lower: dict[str, Any] = {"precision": "int8", "max_accuracy_drop": 100.0}
    path = tmp_path / "task.ptpack"
    made = pack(ExportConfig(runs=(other_run,), out=path, **lower), Quiet())
    assert made.record.manifest.graph.lowered is not None
    export(ExportConfig(runs=(llama_run,), out=tmp_path / "on-device", **lower), Quiet())
    manifest = install(path, tmp_path / "on-device", tmp_path / "new", check=True)
    assert manifest.graph == made.record.manifest.graph
    other = read_manifest((tmp_path / "on-device" / "manifest.json").read_bytes(), "")
    assert other.graph.lowered is not None
    blocks = msgspec.structs.replace(other.graph.lowered, products={"int8-blocks": 14})
    graph = msgspec.structs.replace(other.graph, lowered=blocks)
    (tmp_path / "on-device" / "manifest.json").write_bytes(msgspec.structs.replace(other, graph=graph).to_json())
    shutil.rmtree(tmp_path / "new")
    refused(path, tmp_path / "on-device", "has products 14 in row, .* 14 in int8-blocks; name another, or make one")


def test_constants_cannot_be_packed(llama_run: Path, tmp_path: Path) -> None:
    config = ExportConfig(runs=(llama_run,), out=tmp_path / "a.ptpack", target="web")
    with pytest.raises(ExportError, match=r"target web: its graphs store the task arrays as constants, "):
        pack(config, Quiet())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_pack_in_lower_precision_has_every_array(precision: Precision, llama_run: Path, tmp_path: Path) -> None:
    """In int8: `test_a_pack_in_integers`."""
    config = ExportConfig(runs=(llama_run,), out=tmp_path / "a.ptpack", precision=precision, max_accuracy_drop=100.0)
    assert set(pack(config, Quiet()).arrays) == set(Run.read(llama_run).arrays.by_name())


MANY: dict[str, tuple[str, list[str], list[str]]] = {
    # The pack's tasks, then those of the bundle on the device, which are another number.
    "blocks": ("llama", ["{text} It was [P*3]", "{text} [P]"], ["{text} [P*2]", "{text} is [P*2]", "{text} [P] it"]),
    "mixed": ("bert", ["[P] {text} [MASK]", "{text} [P*2] [MASK]"], ["{text} was [P] [MASK]", "[P*3] {text} [MASK]"]),
}


@pytest.mark.parametrize("case", MANY)
def test_install_writes_what_export_writes_of_several_tasks(
    case: str, model_of: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    model, *templates = MANY[case]
    runs = [
        tuple(
            train_tiny(model_of(model), rows_file, template, tmp_path / f"{name}-{t}") for t, template in enumerate(own)
        )
        for name, own in zip(("task", "device"), templates, strict=True)
    ]
    export(ExportConfig(runs=runs[0], out=tmp_path / "task"), Quiet())
    export(ExportConfig(runs=runs[1], out=tmp_path / "device"), Quiet())
    pack(ExportConfig(runs=runs[0], out=tmp_path / "tasks.ptpack"), Quiet())
    manifest = install(tmp_path / "tasks.ptpack", tmp_path / "device", tmp_path / "new", check=True)
    assert [task.name for task in manifest.tasks] == ["task-0", "task-1"]
    for name in MULTITASK_FILES:
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "task" / name).read_bytes(), name
    card = (tmp_path / "task" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "new" / "README.md").read_text(encoding="utf-8") == renamed(card)
    packed(runs[0][0], tmp_path / "one" / "task.ptpack")
    refused(
        tmp_path / "one" / "task.ptpack",
        tmp_path / "device",
        "has one task, .* has several tasks; name a bundle of one",
    )


def test_a_device_needs_neither_torch_nor_onnx(other_pack: Path, llama_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nheavy = ('torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'optimum', 'datasets')\n"
        "sys.modules.update(dict.fromkeys(heavy))  # None: cannot be imported\n"
        "from ptexport.toolkit.cli.main import main\n"
        "main()\n"
        "sys.exit([name for name in heavy if sys.modules[name] is not None])"
    )
    command = ["install", other_pack, "--backbone", llama_bundle, "--out", tmp_path / "new", "--check", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["installed"]["golden_max_abs_diff"] < 1e-4
    Engine.open(tmp_path / "new")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "exists already; choose another name, or replace it with --force" in done.stderr


def refused(path: Path, backbone: Path, message: str, error: type[Exception] = PackError) -> None:
    """Install must fail with a sentence, and leave nothing behind."""
    out = path.parent / "new" / "bundle"
    with pytest.raises(error, match=message) as caught:
        install(path, backbone, out)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_what_is_no_pack(other_pack: Path, llama_bundle: Path, llama_run: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "task.ptpack", other_pack.read_bytes()
    refused(path, llama_bundle, "task.ptpack: missing, or not a file")
    for size in (0, 7, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, llama_bundle, "not a complete pack .* copy it again")
    header = json.dumps({"record": "x" * 5_000}).encode()  # which safetensors quotes whole: that is no tensor
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path, llama_bundle, "not a complete pack .* copy it again")
    path.write_bytes((llama_run / "weights.safetensors").read_bytes())
    refused(path, llama_bundle, "a safetensors file, but not a pack")
    made = Pack.read(other_pack)
    metadata = {"format": "2", "record": msgspec.json.encode(made.record).decode(), "digest": made.digest}
    path.write_bytes(save(made.arrays, metadata))
    install(path, llama_bundle, tmp_path / "control")
    path.write_bytes(save(made.arrays, metadata | {"format": "1"}))
    refused(path, llama_bundle, "got format '1', need '2'; pack again")
    path.write_bytes(save(made.arrays, metadata | {"record": metadata["record"].replace("positive", "negative")}))
    refused(path, llama_bundle, "its digest does not match its content; it was changed")
    path.write_bytes(save(made.arrays | {"label_bias": made.arrays["label_bias"] + 1}, metadata))
    refused(path, llama_bundle, "its digest does not match its content; it was changed")
    path.write_bytes(save(made.arrays | {"label_weights": made.arrays["label_weights"].reshape(-1, 4)}, metadata))
    refused(path, llama_bundle, "its digest does not match its content; it was changed")


def test_any_flipped_byte_is_seen(other_pack: Path, llama_bundle: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "task.ptpack", other_pack.read_bytes()
    for at in [*range(0, 40, 7), *range(40, len(data), len(data) // 40)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(PackError):
            install(path, llama_bundle, tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["task.ptpack"]


def with_digest(made: Pack, path: Path, **changes: object) -> Path:
    """Write a pack whose record was changed by someone who knows how to hash."""
    record = msgspec.structs.replace(made.record, **changes)
    path.write_bytes(Pack.of_parts(record, made.arrays).to_bytes())
    return path


@pytest.mark.parametrize("part", ["texts", "files", "tokenizer", "metrics", "arrays"])
def test_a_pack_that_lies(part: str, other_pack: Path, llama_bundle: Path, tmp_path: Path) -> None:
    made, path = Pack.read(other_pack), tmp_path / "task.ptpack"
    record = made.record
    if part == "texts":
        with_digest(made, path, texts={"../../elsewhere": "x"})
        refused(path, llama_bundle, "lists other files than a bundle's")
    elif part == "files":
        files = {**record.manifest.files, "../elsewhere": record.manifest.files["model.onnx"]}
        with_digest(made, path, manifest=msgspec.structs.replace(record.manifest, files=files))
        refused(path, llama_bundle, "lists other files than a bundle's")
    elif part == "tokenizer":
        tokens = {**record.tokenizer.tokens, "film": 3}
        with_digest(made, path, tokenizer=msgspec.structs.replace(record.tokenizer, tokens=tokens))
        refused(path, llama_bundle, "tokenizer.json, assembled with .*, differs from the exported file")
    elif part == "metrics":
        with_digest(made, path, metrics=[])
        refused(path, llama_bundle, "has metrics of 0 tasks, need 1")
    else:
        arrays = {name: array + 1 for name, array in made.arrays.items()}
        path.write_bytes(Pack.of_parts(record, arrays).to_bytes())
        refused(path, llama_bundle, "model.onnx, assembled with .*, differs from the exported file")


def test_a_pack_for_another_bundle(other_pack: Path, llama_bundle: Path, bert_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(other_pack, tmp_path / "task.ptpack"))
    refused(path, bert_bundle, r"is for tiny-llama \(\w{16}\), .* has tiny-bert \(\w{16}\); name a bundle of")
    for what, other in (("opset", 23), ("pooling", "mean")):
        copy = Path(shutil.copytree(llama_bundle, tmp_path / what))
        manifest = read_manifest((copy / "manifest.json").read_bytes(), "")
        graph = msgspec.structs.replace(manifest.graph, **{what: other})
        (copy / "manifest.json").write_bytes(msgspec.structs.replace(manifest, graph=graph).to_json())
        refused(path, copy, f"is for {what} {getattr(manifest.graph, what)}, .* has {other}; name another")
    damaged = Path(shutil.copytree(llama_bundle, tmp_path / "damaged"))
    weights = bytearray((damaged / "model.onnx.data").read_bytes())
    weights[100] ^= 1
    (damaged / "model.onnx.data").write_bytes(weights)
    refused(path, damaged, "its sha256 differs from the manifest's", BundleError)
    signed(damaged)
    refused(path, damaged, "its graph or weights differ from those of")
    traced = Path(shutil.copytree(llama_bundle, tmp_path / "traced"))
    model = (traced / "model.onnx").read_bytes()
    (traced / "model.onnx").write_bytes(model.replace(b"ptexport", b"PTEXPORT"))  # the producer's name
    signed(traced)
    refused(path, traced, "its graph or weights differ from those of")


def signed(bundle: Path) -> None:
    """Make a changed bundle whole again."""
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "")
    files = {name: file_entry(bundle / name) for name in manifest.files}
    (bundle / "manifest.json").write_bytes(msgspec.structs.replace(manifest, files=files).to_json())


def test_a_prefix_is_not_for_a_graph_without(bert: Path, bert_bundle: Path, rows_file: Path, tmp_path: Path) -> None:
    run = train_tiny(bert, rows_file, "[P*3] {text} [MASK]", tmp_path / "run", method="prefix")
    refused(packed(run, tmp_path / "task.ptpack"), bert_bundle, "has .*prefix_kv.*; name a bundle exported by")


def test_runs_that_cannot_be_packed(llama: Path, llama_run: Path, rows_file: Path, tmp_path: Path) -> None:
    tuned = train_tiny(llama, rows_file, "[P] {text}", tmp_path / "tuned", train_backbone=True)
    with pytest.raises(ExportError, match="its backbone was trained with it, need a frozen one; export it instead"):
        packed(tuned, tmp_path / "a.ptpack")
    run, path = Run.read(llama_run), tmp_path / "open"
    path.mkdir()
    msgspec.structs.force_setattr(run.config, "open_vocabulary", True)
    run.write(path)
    with pytest.raises(ExportError, match="has an open vocabulary, 0 MB of label weights; export it instead"):
        packed(path, tmp_path / "a.ptpack")
    (tmp_path / "a.ptpack").write_bytes(b"")
    with pytest.raises(OutputError, match="exists already"):
        packed(llama_run, tmp_path / "a.ptpack")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.ptpack", "open", "tuned"]


def test_golden_rows_are_what_the_model_answers(llama_bundle: Path, bert_bundle: Path, tmp_path: Path) -> None:
    for bundle in (llama_bundle, bert_bundle):
        engine = Engine.open(bundle)
        assert [set(row.logits) for row in engine.manifest.task.golden] == [set(engine.labels)] * 4
        assert engine.info.golden_max_abs_diff < 1e-4
    differs = "a logit of its golden rows differs by .*, need at most"
    for value, message in ((0.5, differs), (float("nan"), "NaN is not a JSON number")):
        copy = Path(shutil.copytree(llama_bundle, tmp_path / str(value)))
        first, *rest = engine.manifest.task.golden
        manifest = read_manifest((copy / "manifest.json").read_bytes(), "")
        first, *rest = manifest.task.golden
        first.logits["positive"] += value
        task = msgspec.structs.replace(manifest.task, golden=[first, *rest])
        changed = msgspec.structs.replace(manifest, tasks=[task])
        (copy / "manifest.json").write_bytes(changed.to_json())
        with pytest.raises(BundleError, match=message):
            Engine.open(copy)


def test_a_list_holds_a_row_for_every_id_below_the_virtual_tokens(llama_run: Path, tmp_path: Path) -> None:
    """But none where there is no virtual token."""
    vocab = unigram().get_vocab_size() + 3
    facts = msgspec.structs.replace(Run.read(llama_run).config.backbone, vocab=vocab)
    files = {}
    for name, template in (("none", "{text} it was"), ("some", "[P*2] {text}")):
        compiled = compile_template(Template.parse(template), facts, unigram().to_str(), mask_slot=False, max_length=48)
        files[name] = compiled.tokenizer_json()
    assert "[unused" in files["some"]
    assert "[unused" not in files["none"]
    for task in files:
        for other in files:
            made = PackTokenizer.of(files[task], vocab).put_into(files[other].encode())
            assert made.decode() == files[task]
