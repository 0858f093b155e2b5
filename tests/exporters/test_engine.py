"""An engine in a bundle, and one engine for all tasks of a backbone; the builder is played.

The real builder: targets/test_tensorrt_rtx_parser.py.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from commands import ptexport
from packed import pack_of
from played_rtx import PlayedRtx
from tiny import Quiet, train_tiny

from ptexport.exporters.config import ExportConfig
from ptexport.exporters.engine import profile_of
from ptexport.exporters.export import export
from ptexport.exporters.packs.install import install
from ptexport.exporters.targets.tensorrt_rtx import CAPABILITIES, read_capabilities
from ptexport.runtime import Engine
from ptexport.runtime.bundle.folder import ENGINE, ENGINE_FILES, MANIFEST, MODEL, WEIGHTS, Bundle
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.bundle.model_file import OnnxFile
from ptexport.runtime.errors import ExportError, MissingExtraError, ProviderError
from ptexport.runtime.ort.batch_shapes import Buckets
from ptexport.runtime.ort.graph import Graph
from ptexport.runtime.ort.providers import Provider

TEXTS = ["the film was bright", "the story was very very slow and dull", "a review"]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_home: Path) -> PlayedRtx:
    """The played module, and a cache without engines that has the traces of the other tests."""
    own = tmp_path / "cache"
    (own / "ptexport").mkdir(parents=True)
    (cache_home / "ptexport" / "traces").mkdir(parents=True, exist_ok=True)
    (own / "ptexport" / "traces").symlink_to(cache_home / "ptexport" / "traces")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own))
    return PlayedRtx(monkeypatch)


@pytest.fixture(scope="session")
def other_run(llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task on the backbone of `llama_run` with other numbers of virtual tokens and labels, and shorter rows."""
    labels = "positive=great|good,negative=terrible|bad,neutral=slow"
    folder = tmp_path_factory.mktemp("other") / "other"
    return train_tiny(llama, rows_file, "[P*5] {text} It [P] was [P]", folder, labels=labels, max_length=40)


def exported(run: Path, out: Path, *cards: str, **options: Any) -> Manifest:
    config = ExportConfig(
        runs=(run,), out=out, target="tensorrt-rtx", compute_capabilities=cards or ("8.9", "12.0"), **options
    )
    return export(config, Quiet())


def test_an_engine_in_a_bundle(llama_run: Path, played: PlayedRtx, tmp_path: Path) -> None:
    exported(llama_run, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    engine, files = bundle.manifest.engine, bundle.manifest.files
    assert engine is not None
    assert (engine.compute_capabilities, engine.layers, engine.tensorrt_rtx) == (["8.9", "12.0"], 7, "1.7.1.116")
    assert (bundle.path / ENGINE).read_bytes() == b"engine 1"
    assert set(ENGINE_FILES) < set(files)
    (build,) = played.builds
    assert build["capabilities"] == ["SM89", "SM120"]
    # The parser would make constants of initializers, so the engine is built without those of the task.
    arrays = OnnxFile.parse((bundle.path / MODEL).read_bytes(), "").arrays
    graph = onnx.load_from_string(build["model"]).graph
    assert set(arrays) == {"prompt_embeddings", "label_weights", "label_bias", "prefix_kv"}
    assert not set(arrays) & {initializer.name for initializer in graph.initializer}
    assert set(arrays) < {value.name for value in graph.input} == set(build["profile"])
    with Engine.open(bundle.path, provider="cpu") as opened:  # the graph is there too
        assert len(opened.predict(TEXTS)) == len(TEXTS)


def test_a_second_task_costs_no_build(llama_run: Path, other_run: Path, played: PlayedRtx, tmp_path: Path) -> None:
    first, second = exported(llama_run, tmp_path / "a"), exported(other_run, tmp_path / "b")
    shapes = [{n: a.shape for n, a in arrays_of(tmp_path / name).items()} for name in ("a", "b")]
    assert shapes[0]["prompt_embeddings"] != shapes[1]["prompt_embeddings"], "tasks of other sizes"
    assert shapes[0]["label_bias"] != shapes[1]["label_bias"]
    assert len(played.builds) == 1
    assert all(first.files[name] == second.files[name] for name in ENGINE_FILES)
    assert first.engine == second.engine
    third = exported(other_run, tmp_path / "c", "8.6")
    assert len(played.builds) == 2
    assert third.files[ENGINE] != second.files[ENGINE]


def arrays_of(bundle: Path) -> dict[str, Any]:
    return OnnxFile.parse((bundle / MODEL).read_bytes(), "").arrays


def test_the_graph_of_the_engine_has_the_logits_of_both_tasks(
    llama_run: Path, other_run: Path, played: PlayedRtx, tmp_path: Path
) -> None:
    """What the engine is built from, on the CPU, opened as an engine is: each run gets the arrays of its task."""
    exported(llama_run, tmp_path / "a")
    exported(other_run, tmp_path / "b")
    (build,) = played.builds
    (tmp_path / "engine.onnx").write_bytes(build["model"])
    (tmp_path / WEIGHTS).write_bytes((tmp_path / "a" / WEIGHTS).read_bytes())
    ids = {name: np.random.default_rng(0).integers(5, 300, (3, 12)) for name in ("input_ids",)}
    ids["attention_mask"] = np.ones((3, 12), dtype=np.int64)
    graphs, own = {}, {}
    for name in ("a", "b"):
        file = OnnxFile.parse((tmp_path / name / MODEL).read_bytes(), name)
        graphs[name] = Graph.open_shared(
            tmp_path / "engine.onnx", file, "engine", provider=Provider(), threads=1, buckets=Buckets.up_to(48)
        )
        own[name] = Graph.open(tmp_path / name / MODEL, threads=1)
    assert graphs["a"].session is graphs["b"].session
    assert graphs["a"].inputs == own["a"].inputs == ["input_ids", "attention_mask"]
    for name in ("a", "b"):
        np.testing.assert_allclose(graphs[name].run(ids), own[name].run(ids), atol=1e-5)
    swapped = graphs["a"].with_arrays(arrays_of(tmp_path / "b"), Buckets.up_to(40)).run(ids)
    np.testing.assert_allclose(swapped, own["b"].run(ids), atol=1e-5)
    assert np.abs(swapped[:, :2] - own["a"].run(ids)).max() > 1e-2, "the arrays matter"


def test_a_pack_costs_no_build(llama_run: Path, other_run: Path, played: PlayedRtx, tmp_path: Path) -> None:
    base = exported(llama_run, tmp_path / "base")
    export(ExportConfig(runs=(other_run,), out=tmp_path / "other"), Quiet())
    pack = pack_of(tmp_path / "other", other_run, tmp_path / "other.ptpack")
    installed = install(pack, tmp_path / "base", tmp_path / "new", check=True)
    assert len(played.builds) == 1
    assert installed.engine == base.engine
    assert Bundle.open(tmp_path / "new").manifest.files[ENGINE] == base.files[ENGINE]
    # An engine with room for two labels alone, where the pack has three.
    assert base.engine is not None
    narrow = {**base.engine.profile, "label_bias": msgspec.structs.replace(base.engine.profile["label_bias"], most=[2])}
    engine = msgspec.structs.replace(base.engine, profile=narrow)
    manifest = msgspec.structs.replace(base, engine=engine)
    (tmp_path / "base" / MANIFEST).write_bytes(manifest.to_json())
    with pytest.raises(ProviderError, match=r"label_bias has the shape \[3\], the engine takes \[1\] to \[2\]; export"):
        install(pack, tmp_path / "base", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_int8_keeps_the_arrays_of_the_task_apart(
    llama: Path, rows_file: Path, played: PlayedRtx, tmp_path: Path
) -> None:
    """Arrays of 1,024 bytes and more come out of ONNX Runtime's quantizer with one field more."""
    run = train_tiny(llama, rows_file, "[P*2] Review: {text} It was [P*10]", tmp_path / "run")
    exported(run, tmp_path / "bundle", precision="int8", max_accuracy_drop=100)
    assert set(arrays_of(tmp_path / "bundle")) == {"prompt_embeddings", "label_weights", "label_bias", "prefix_kv"}
    (build,) = played.builds
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(build["model"]).graph.node}


def test_what_the_builder_refuses_leaves_no_bundle(llama_run: Path, played: PlayedRtx, tmp_path: Path) -> None:
    played.refused = "ArgMax"
    with pytest.raises(ExportError, match="its parser refuses ArgMax node_7: no importer; choose another target"):
        exported(llama_run, tmp_path / "bundle")
    played.refused, played.fails = "", True
    with pytest.raises(ExportError, match=r"no engine was built \(no room for a tensor\); choose another target"):
        exported(llama_run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    played.fails = False
    assert exported(llama_run, tmp_path / "bundle").engine is not None


def test_a_changed_engine_in_the_cache(llama_run: Path, played: PlayedRtx, tmp_path: Path) -> None:
    exported(llama_run, tmp_path / "a")
    (cached,) = (tmp_path / "cache" / "ptexport" / "tensorrt-rtx").glob(f"*/{ENGINE}")
    cached.write_bytes(b"engine 9")
    with pytest.raises(ExportError, match="its engine was changed; remove the folder and export again"):
        exported(llama_run, tmp_path / "b")
    shutil.rmtree(cached.parent)
    exported(llama_run, tmp_path / "b")
    assert len(played.builds) == 2


def test_room_for_other_tasks(llama_bundle: Path) -> None:
    profile = profile_of(llama_bundle / MODEL, 48)
    assert profile["input_ids"] == profile["attention_mask"]
    assert (profile["input_ids"].least, profile["input_ids"].most) == ([1, 1], [*Buckets.up_to(128).profile()[2]])
    assert profile["label_bias"].most == [128]
    assert profile["prefix_kv"].least[4] == 1
    assert profile["prefix_kv"].most[4] == 128
    assert profile["prefix_kv"].least[:4] == profile["prefix_kv"].most[:4], "of the backbone"
    assert profile_of(llama_bundle / MODEL, 129)["input_ids"].most[1] == 256
    assert profile_of(llama_bundle / MODEL, 100) == profile


@pytest.mark.parametrize("text", ["89,120", "120, 89", "8.9,12.0", "sm_89,SM120"])
def test_compute_capabilities(text: str) -> None:
    assert read_capabilities(text) == ("8.9", "12.0")
    assert read_capabilities(",".join(CAPABILITIES)) == CAPABILITIES


@pytest.mark.parametrize("text", ["90", "", "89,", "8.9.0", "new"])
def test_unknown_compute_capabilities(text: str) -> None:
    with pytest.raises(ExportError, match="need some of 75, 80, 86, 89, 120, 121; name those of the cards"):
        read_capabilities(text)


def test_options_that_do_not_go_together(llama_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", tmp_path / "bundle"]
    said = ptexport("export", llama_run, *out, "--target", "tensorrt-rtx").stderr
    assert "target tensorrt-rtx: got no compute capability, need those of the cards; name them, such as" in said
    said = ptexport("export", llama_run, *out, "--compute-capability", "89").stderr
    assert "compute capability: goes with target tensorrt-rtx, got cpu; leave it out" in said
    said = ptexport("pack", llama_run, "--out", tmp_path / "task.ptpack", "--target", "tensorrt-rtx").stderr
    assert "packs hold no engine and fit bundles with one; pack for cuda" in said
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        MissingExtraError, match=r"TensorRT RTX is not installed; pip install 'ptexport\[tensorrt-rtx\]'"
    ):
        exported(llama_run, tmp_path / "bundle")
