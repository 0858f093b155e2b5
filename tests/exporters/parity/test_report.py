"""parity.json and its page: what they hold, that they hold no text, and graphs that must be seen through."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from ptexport.exporters.parity.compare import (
    MOST_NEIGHBOUR_TOKENS,
    choose_neighbours,
    compare_graph,
    fail_on_difference,
    texts_of_lengths,
    texts_to_check,
    tolerance_of,
)
from ptexport.exporters.parity.html_page import page
from ptexport.exporters.parity.reference import expected_logits
from ptexport.exporters.parity.report import ParityReport, VariantReport, summarize
from ptexport.runtime.bundle.measured import Parity
from ptexport.runtime.errors import ExportError
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run


def read(bundle: Path) -> ParityReport:
    return msgspec.json.decode((bundle / "parity.json").read_bytes(), type=ParityReport)


@pytest.fixture(scope="module")
def run(llama_run: Path) -> Run:
    return Run.read(llama_run)


@pytest.fixture(scope="module")
def expected(run: Run) -> np.ndarray:
    backbone = load_backbone_of(run.config, Path())
    texts = [*texts_to_check(run, run.check_rows), *texts_of_lengths(run)]
    return expected_logits(run, backbone, texts, lambda done, total: None)


def compared(run: Run, expected: np.ndarray, folder: Path) -> tuple[VariantReport, Parity]:
    texts = texts_to_check(run, run.check_rows)
    report = compare_graph(run, expected, folder, texts, texts_of_lengths(run))
    return report, summarize(report, rows=len(texts), tolerance=tolerance_of(run))


@pytest.mark.parametrize("fixture", ["llama_bundle", "bert_bundle"])
def test_the_report_and_the_manifest_say_the_same(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    report = read(bundle)
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    (variant,) = report.variants
    assert variant.precision == manifest.graph.precision == "fp32"
    assert summarize(variant, rows=report.rows, tolerance=report.tolerance) == manifest.parity
    assert sorted(row.row for row in variant.rows) == list(range(report.rows))
    differences = [row.max_abs_diff for row in variant.rows]
    assert differences == sorted(differences, reverse=True)
    ways = (variant.alone, variant.padded_right, variant.padded_left)
    assert differences[0] == max(way.max_abs_diff for way in ways)
    assert variant.neighbours.neighbours == 64
    tokens = [point.tokens for point in variant.lengths]
    assert tokens == sorted(tokens)
    assert tokens[0] < 10
    assert tokens[-1] == manifest.max_length
    assert variant.lengths[-1].truncated
    assert not variant.lengths[0].truncated


def test_no_text_is_in_a_bundle(llama_bundle: Path, run: Run) -> None:
    texts = [row.text for row in run.check_rows] + [row.text for row in load_cities()[:20]]
    for name in ("parity.json", "parity.html", "manifest.json", "README.md"):
        written = (llama_bundle / name).read_text(encoding="utf-8")
        assert not [text for text in texts if text in written], name


def changed(bundle: Path, folder: Path, change: Callable[[ir.Model, ir.Value], list[ir.Node]]) -> Path:
    """Copy a bundle, and put nodes behind its logits."""
    shutil.copytree(bundle, folder)
    model = ir.load(bundle / "model.onnx")
    (logits,) = model.graph.outputs
    logits.name = "right_logits"
    nodes = change(model, logits)
    model.graph.extend(nodes)
    wrong = nodes[-1].outputs[0]
    wrong.name, wrong.dtype, wrong.shape = "logits", logits.dtype, logits.shape
    model.graph.outputs[0] = wrong
    ir.save(model, folder / "model.onnx")
    return folder


def constant(model: ir.Model, name: str, value: object, dtype: type) -> ir.Value:
    made = ir.Value(name=name, const_value=ir.tensor(np.array(value, dtype=dtype), name=name))
    model.graph.register_initializer(made)
    return made


def lean_on_neighbours(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
    """Take from each row a hundredth of the largest logits in the batch: alone, from every row its own."""
    largest = ir.node("ReduceMax", [logits, constant(model, "rows", [0], np.int64)])
    apart = ir.node("Sub", [largest.outputs[0], logits])
    part = ir.node("Mul", [apart.outputs[0], constant(model, "part", 0.01, np.float32)])
    return [largest, apart, part, ir.node("Add", [logits, part.outputs[0]])]


def test_control_answers_that_depend_on_neighbours_are_seen(
    llama_bundle: Path, run: Run, expected: np.ndarray, tmp_path: Path
) -> None:
    _, right = compared(run, expected, llama_bundle)
    fail_on_difference(right)
    report, parity = compared(run, expected, changed(llama_bundle, tmp_path / "changed", lean_on_neighbours))
    assert parity.alone.max_abs_diff == pytest.approx(right.alone.max_abs_diff, abs=1e-6)
    assert parity.among_neighbours is not None
    assert parity.among_neighbours == report.neighbours.max_abs_diff > 2 * parity.tolerance
    unpadded = msgspec.structs.replace(parity, padded_right=parity.alone, padded_left=parity.alone, all_lengths=0.0)
    with pytest.raises(ExportError, match=r"among neighbours.*no bundle was written"):
        fail_on_difference(unpadded)


def wrong_at_one_length(tokens: int) -> Callable[[ir.Model, ir.Value], list[ir.Node]]:
    def change(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
        length = ir.node("Shape", [model.graph.inputs[0]], attributes={"start": 1, "end": 2})
        wrong = ir.node("Equal", [length.outputs[0], constant(model, "tokens", [tokens], np.int64)])
        added = ir.node("Add", [logits, constant(model, "tenth", [0.1], np.float32)])
        return [length, wrong, added, ir.node("Where", [wrong.outputs[0], added.outputs[0], logits])]

    return change


def test_control_a_length_that_no_row_has_is_seen(
    llama_bundle: Path, run: Run, expected: np.ndarray, tmp_path: Path
) -> None:
    (variant,) = read(llama_bundle).variants
    of_rows = {row.tokens for row in variant.rows}
    (length, *_) = [point.tokens for point in variant.lengths if point.tokens not in of_rows]
    folder = changed(llama_bundle, tmp_path / "changed", wrong_at_one_length(length))
    report, parity = compared(run, expected, folder)
    assert {p.tokens for p in report.lengths if p.max_abs_diff > 0.09} == {length}
    assert parity.all_lengths == pytest.approx(0.1, abs=1e-3)
    assert max(parity.alone.max_abs_diff, parity.padded_right.max_abs_diff) < parity.tolerance
    with pytest.raises(ExportError, match=r"all lengths.*no bundle was written"):
        fail_on_difference(parity)


def test_control_one_row_answered_otherwise_is_listed(llama_bundle: Path, run: Run, expected: np.ndarray) -> None:
    other = expected.copy()
    other[3] = other[3, ::-1]
    report, parity = compared(run, other, llama_bundle)
    margin = abs(float(expected[3, 0] - expected[3, 1]))
    assert report.rows[0].row == 3
    for way in (report.alone, report.padded_right, report.padded_left):
        (flip,) = way.flips
        assert (flip.row, flip.margin) == (3, pytest.approx(margin, abs=1e-6))
        assert {flip.expected, flip.got} == {"positive", "negative"}
        assert flip.expected == run.config.labels[int(other[3].argmax())]
    assert parity.alone.flips == [3]
    with pytest.raises(ExportError, match=r"1 of .* labels differ \(rows \[3\]\)"):
        fail_on_difference(parity)


def test_a_not_a_number_among_lengths_fails(run: Run, expected: np.ndarray, llama_bundle: Path) -> None:
    other = expected.copy()
    other[-2] = np.nan
    _, parity = compared(run, other, llama_bundle)
    with pytest.raises(ExportError, match=r"all lengths.*nan"):
        fail_on_difference(parity)


@pytest.mark.parametrize("lengths", [[7], [9, 3, 5], list(range(1, 400)), [600] * 80, [5] * 70 + [500] * 70])
def test_neighbours_are_of_many_lengths_but_no_more_than_fit(lengths: list[int]) -> None:
    rows = choose_neighbours(lengths)
    assert len(rows) == 65
    fit = [n for n in lengths if 65 * n <= MOST_NEIGHBOUR_TOKENS]
    assert {lengths[i] for i in (rows[0], rows[-1])} == ({min(fit), max(fit)} if fit else {min(lengths)})
    assert len(set(rows)) == max(1, min(65, len(fit)))


def odd(report: ParityReport) -> ParityReport:
    (variant,) = report.variants
    flips = [{"row": 4, "expected": "<i>$_$", "got": "b & c", "margin": 0.25}]
    record = msgspec.to_builtins(variant.alone) | {"flips": flips}
    alone = msgspec.convert(record, type(variant.alone))
    variant = msgspec.structs.replace(variant, precision="int8", alone=alone)
    return msgspec.structs.replace(report, bundle="<b>$x^$</b>", variants=[*report.variants, variant])


def test_the_page(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = odd(read(llama_bundle))
    html = page(report).decode()
    assert html.count("<svg") == 2 * len(report.variants) == 4
    assert "pip install" not in html
    assert "&lt;b&gt;$x^$&lt;/b&gt;" in html
    assert "&lt;i&gt;$_$" in html
    assert "<i>" not in html
    assert "int8: largest Δ" in html
    assert "1 label differs" in html
    assert not [mark for mark in ("<script", "<link", "<img", "src=") if mark in html]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bare = page(report).decode()
    assert "pip install 'ptexport[bench]'" in bare
    assert "<svg" not in bare
