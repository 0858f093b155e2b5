"""The profile bench on tiny bundles: every kernel counts once, with its part of the model."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx_ir as ir
import pytest
from commands import ptexport
from tiny import Quiet

from ptexport.exporters.inspect.parts import Flow, Place, place_of_nodes
from ptexport.runtime.bundle.folder import MODEL, Bundle
from ptexport.runtime.errors import BenchError
from ptexport.toolkit.bench import interleaved
from ptexport.toolkit.bench.compare import compare
from ptexport.toolkit.bench.profile.profile import Kernel, ProfileConfig, place_kernels, read_runs
from ptexport.toolkit.bench.profile.report import bench_profile
from ptexport.toolkit.bench.report import BenchReport, Figure

PLACES = {
    "mask": ("other", None),
    "lookup": ("embeddings", None),
    "query": ("attention", 0),
    "up": ("mlp", 0),
    "key": ("attention", 1),
    "answer": ("label weights", None),
}


def placed(*nodes: tuple[str, str]) -> list[tuple[str, str]]:
    return place_kernels([Kernel(name, kind, 1.0) for name, kind in nodes], PLACES)


def config_of(bundle: Path, *, batch: int = 2, tokens: int = 6) -> ProfileConfig:
    return ProfileConfig(bundle=bundle, batch=batch, tokens=tokens, threads=1, command="ptexport bench profile")


def profile_of(bundle: Path, *, forget: str = "") -> BenchReport:
    """Profile a bundle; without the parts of nodes whose names begin with `forget`."""
    places = place_of_nodes(Flow(list(ir.load(bundle / MODEL).graph)))
    known = {
        name: (place.name, place.layer) for name, place in places.items() if not forget or not name.startswith(forget)
    }
    return bench_profile(config_of(bundle), lambda: known, Quiet())


def values(report: BenchReport, group: str) -> dict[str, float]:
    named = {figure.name.removesuffix("/2x6"): figure.value for figure in report.figures}
    return {name.removeprefix(f"{group}/"): value for name, value in named.items() if name.startswith(f"{group}/")}


def test_nodes_that_onnx_runtime_created_are_placed_by_name_or_neighbours() -> None:
    assert placed(("query/MatMulScaleFusion/", "FusedMatMul"), ("fused up", "FusedGemm"), ("answer", "Gemm")) == [
        ("layer 0", "attention"),
        ("layer 0", "mlp"),
        ("head", "other"),
    ]
    # between two nodes of a layer; a norm before the next layer, with a mask node between; between layers: not placed
    assert placed(
        ("query", "MatMul"), ("x", "Gather"), ("up", "MatMul"), ("y", "SkipLayerNormalization"), ("mask", "Cast"),
        ("z", "Gather"), ("key", "MatMul"), ("end", "Gather"),
    ) == [
        ("layer 0", "attention"), ("layer 0", "attention"), ("layer 0", "mlp"), ("layer 1", "norms"),
        ("masks and positions", "other"), ("not placed", "other"), ("layer 1", "attention"), ("not placed", "other"),
    ]  # fmt: skip
    assert placed(("queryless", "MatMul")) == [("not placed", "other")]


def test_a_runs_kernels_are_those_before_it() -> None:
    def node(name: str, us: int) -> dict[str, object]:
        return {"cat": "Node", "name": name, "dur": us, "args": {"op_name": "Add"}}

    def run(us: int) -> dict[str, object]:
        return {"cat": "Session", "name": "model_run", "dur": us}

    loading = {"cat": "Session", "name": "session_initialization", "dur": 9}
    events = [
        loading,
        node("a_kernel_time", 1500),
        node("a_fence_before", 9),
        run(4000),
        node("b_kernel_time", 250),
        run(500),
    ]
    first, second = read_runs(msgspec.json.encode(events))
    assert (first.ms, first.kernels) == (4.0, [Kernel("a", "Add", 1.5)])
    assert (second.ms, second.kernels) == (0.5, [Kernel("b", "Add", 0.25)])


@pytest.mark.parametrize("which", ["llama_bundle", "bert_bundle"])
def test_every_node_of_a_graph_has_its_part(which: str, request: pytest.FixtureRequest) -> None:
    """Each layer has the same number of nodes per operator in attention and norms, which needs the flow of values."""
    graph = ir.load(request.getfixturevalue(which) / MODEL).graph
    places = place_of_nodes(Flow(list(graph)))
    of = {node.name: node.op_type for node in graph}
    for layer in (0, 1):
        own = [name for name, place in places.items() if place == Place("attention", layer)]
        assert [of[name] for name in own].count("Softmax") == 1
        assert [of[name] for name in own].count("MatMul") == 6  # queries, keys, values, scores, weighting, output
        mlp = [of[name] for name, place in places.items() if place == Place("mlp", layer)]
        assert mlp.count("MatMul") == (3 if which == "llama_bundle" else 2)
        assert ("Sigmoid" if which == "llama_bundle" else "Erf") in mlp
        norms = [of[name] for name, place in places.items() if place == Place("norms", layer)]
        kinds = ("ReduceMean", "Sqrt") if which == "llama_bundle" else ("LayerNormalization",)
        assert [norms.count(kind) for kind in kinds] == [2] * len(kinds)
    masks = [of[name] for name, place in places.items() if place == Place("other")]
    assert "CumSum" in masks
    assert not {"MatMul", "Softmax"} & set(masks)


@pytest.mark.parametrize("which", ["llama_bundle", "bert_bundle"])
def test_all_time_is_counted_once(which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    report = profile_of(request.getfixturevalue(which))
    _, kinds, layers = report.tables
    for table, column in ((kinds, 2), (layers, 6)):
        shares = [float(row[column].removesuffix("%")) for row in table.rows]
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    rows = {row[0]: float(row[6].removesuffix("%")) for row in layers.rows}
    lost = rows.pop("not placed", 0.0)
    assert list(rows) == ["masks and positions", "embeddings", "layer 0", "layer 1", "head"]
    assert lost < 10  # a few that ONNX Runtime made and named after none, between two rows
    assert sum(int(row[3]) for row in kinds.rows) > 50
    whole = values(report, "whole")
    assert 0 < whole["kernels"] < whole["run"]
    assert whole["plain"] < whole["call"]
    assert values(report, "outside")["runtime"] > 0
    assert "could not be assigned" in " ".join(report.verdict)
    assert "The profiler's cost: a run takes " in " ".join(report.how)
    for plot in report.plots:
        drawn = sum(sum(series.x) for series in plot.series)
        assert drawn == pytest.approx(sum(sum(series.x) for series in report.plots[0].series))


def test_a_node_of_no_known_part_is_not_placed(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: without the names of the matrix products most time is not placed, and still counted."""
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    report = profile_of(llama_bundle, forget="node_")
    layers = values(report, "layer")
    assert list(layers) == ["not placed"]
    assert layers["not placed"] == pytest.approx(values(report, "whole")["kernels"])
    assert "part/not placed/2x6" in {figure.name for figure in report.figures}
    assert not report.verdict[-1].startswith("0.00 ms")


def test_profiles_are_compared_by_latency(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by operator types, which fusions change; and only with profiles of the same size."""
    monkeypatch.setattr(interleaved, "PAUSE_S", 0.0)
    old = profile_of(llama_bundle)

    def later(change: Callable[[Figure], Figure | None]) -> BenchReport:
        return msgspec.structs.replace(old, figures=[new for figure in old.figures if (new := change(figure))])

    def slower(figure: Figure) -> Figure:
        more = {name: 9 * getattr(figure, name) for name in ("value", "low", "high")}
        return msgspec.structs.replace(figure, **more)

    guarded = ["whole/call/2x6", "whole/plain/2x6"]
    same = compare(old, later(lambda figure: None if figure.name.startswith("kind/") else figure), band=0.15)
    assert ([each.name for each in same.compared], same.worse, same.only_old) == (guarded, [], [])
    assert [each.name for each in compare(old, later(slower), band=0.15).worse] == guarded
    renamed = later(lambda figure: msgspec.structs.replace(figure, name=figure.name.replace("2x6", "1x6")))
    with pytest.raises(BenchError, match="no figure in common"):
        compare(old, renamed, band=0.15)


def test_profile_by_the_command(bert_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    given = ("bench", "profile", bert_bundle, "--out", out, "--batch", 1, "--tokens", 4, "--threads", 1)
    done = ptexport(*given, "--json")
    assert done.returncode == 0, done.stderr
    report = BenchReport.read(out)
    assert json.loads(done.stdout)["kind"] == report.kind == "profile"
    assert list(report.bundles.values()) == [Bundle.open(bert_bundle).manifest.digest]
    assert (out / "report.html").read_text().count("<svg") == 2
    again = ptexport(*given)
    assert (again.returncode, "--force" in again.stderr) == (1, True)


def test_what_profile_refuses(bert_bundle: Path) -> None:
    for changes, message in (({"tokens": 9999}, "takes at most"), ({"batch": 33}, "at most 32 such texts in a batch")):
        with pytest.raises(BenchError, match=message):
            bench_profile(config_of(bert_bundle, **changes), dict, Quiet())
