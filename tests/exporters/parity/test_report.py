"""parity.json and its page: what they hold, that they hold no text, and graphs that must be seen through."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from commands import ptexport
from tiny import Quiet

from ptexport.exporters.multitask.join import JointTasks
from ptexport.exporters.parity.compare import (
    MOST_NEIGHBOUR_TOKENS,
    choose_neighbours,
    compare_graph,
    fail_on_difference,
)
from ptexport.exporters.parity.html_page import page
from ptexport.exporters.parity.reference import Reference
from ptexport.exporters.parity.report import ParityReport, TaskReport, summarize
from ptexport.runtime.bundle.manifest_json import read_manifest
from ptexport.runtime.bundle.measured import Parity
from ptexport.runtime.errors import BundleError, ExportError
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.run.backbone import load_backbone_of
from ptexport.toolkit.run.run import Run


@pytest.fixture(scope="module")
def run(llama_run: Path) -> Run:
    return Run.read(llama_run)


@pytest.fixture(scope="module")
def reference(run: Run) -> Reference:
    return Reference.compute(run, load_backbone_of(run.config, Path()), run.check_rows, Quiet())


def compared(run: Run, reference: Reference, folder: Path) -> tuple[TaskReport, Parity]:
    (report,) = compare_graph(JointTasks({"task": run}), [reference], folder)
    return report, summarize(report)


@pytest.mark.parametrize("fixture", ["llama_bundle", "bert_bundle"])
def test_the_report_and_the_manifest_say_the_same(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    report = ParityReport.read(bundle)
    manifest = read_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    (task,) = report.tasks
    assert report.precision == manifest.graph.precision == "fp32"
    assert (report.bundle, task.name, task.always) == (manifest.name, manifest.task.name, 3)
    assert summarize(task) == manifest.task.parity
    assert sorted(row.row for row in task.worst) == list(range(task.rows))
    differences = [row.max_abs_diff for row in task.worst]
    assert differences == sorted(differences, reverse=True)
    ways = (task.alone, task.padded_right, task.padded_left)
    assert differences[0] == max(way.max_abs_diff for way in ways)
    assert task.neighbours.neighbours == 64
    tokens = [point.tokens for point in task.lengths]
    assert tokens == sorted(tokens)
    assert tokens[0] < 10
    assert tokens[-1] == manifest.task.max_length
    assert task.lengths[-1].truncated
    assert not task.lengths[0].truncated


def test_no_text_is_in_a_bundle(llama_bundle: Path, run: Run) -> None:
    texts = [row.text for row in run.check_rows] + [row.text for row in load_cities()[:20]]
    for name in ("parity.json", "manifest.json", "README.md"):
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
    llama_bundle: Path, run: Run, reference: Reference, tmp_path: Path
) -> None:
    _, right = compared(run, reference, llama_bundle)
    fail_on_difference("task", right)
    report, parity = compared(run, reference, changed(llama_bundle, tmp_path / "changed", lean_on_neighbours))
    assert parity.alone.max_abs_diff == pytest.approx(right.alone.max_abs_diff, abs=1e-6)
    assert parity.among_neighbours is not None
    assert parity.among_neighbours == report.neighbours.max_abs_diff > 2 * parity.tolerance
    unpadded = msgspec.structs.replace(parity, padded_right=parity.alone, padded_left=parity.alone, all_lengths=0.0)
    with pytest.raises(ExportError, match=r"among neighbours.*no bundle was written"):
        fail_on_difference("task", unpadded)


def wrong_at_one_length(tokens: int) -> Callable[[ir.Model, ir.Value], list[ir.Node]]:
    def change(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
        length = ir.node("Shape", [model.graph.inputs[0]], attributes={"start": 1, "end": 2})
        wrong = ir.node("Equal", [length.outputs[0], constant(model, "tokens", [tokens], np.int64)])
        added = ir.node("Add", [logits, constant(model, "tenth", [0.1], np.float32)])
        return [length, wrong, added, ir.node("Where", [wrong.outputs[0], added.outputs[0], logits])]

    return change


def test_control_a_length_that_no_row_has_is_seen(
    llama_bundle: Path, run: Run, reference: Reference, tmp_path: Path
) -> None:
    (task,) = ParityReport.read(llama_bundle).tasks
    of_rows = {row.tokens for row in task.worst}
    (length, *_) = [point.tokens for point in task.lengths if point.tokens not in of_rows]
    folder = changed(llama_bundle, tmp_path / "changed", wrong_at_one_length(length))
    report, parity = compared(run, reference, folder)
    assert {p.tokens for p in report.lengths if p.max_abs_diff > 0.09} == {length}
    assert parity.all_lengths == pytest.approx(0.1, abs=1e-3)
    assert max(parity.alone.max_abs_diff, parity.padded_right.max_abs_diff) < parity.tolerance
    with pytest.raises(ExportError, match=r"all lengths.*no bundle was written"):
        fail_on_difference("task", parity)


def test_control_one_row_answered_otherwise_is_listed(llama_bundle: Path, run: Run, reference: Reference) -> None:
    expected, other = reference.logits, reference.logits.copy()
    other[3] = other[3, ::-1]
    report, parity = compared(run, dataclasses.replace(reference, logits=other), llama_bundle)
    margin = abs(float(expected[3, 0] - expected[3, 1]))
    assert report.worst[0].row == 3
    for way in (report.alone, report.padded_right, report.padded_left):
        (flip,) = way.flips
        assert (flip.row, flip.margin) == (3, pytest.approx(margin, abs=1e-6))
        assert {flip.expected, flip.got} == {"positive", "negative"}
        assert flip.expected == run.config.labels[int(other[3].argmax())]
    assert parity.alone.flips == [3]
    with pytest.raises(ExportError, match=r"1 of .* labels differ \(rows \[3\]\)"):
        fail_on_difference("task", parity)


def test_a_not_a_number_among_lengths_fails(run: Run, reference: Reference, llama_bundle: Path) -> None:
    other = reference.length_logits.copy()
    other[-2] = np.nan
    _, parity = compared(run, dataclasses.replace(reference, length_logits=other), llama_bundle)
    with pytest.raises(ExportError, match=r"all lengths.*nan"):
        fail_on_difference("task", parity)


@pytest.mark.parametrize("lengths", [[7], [9, 3, 5], list(range(1, 400)), [600] * 80, [5] * 70 + [500] * 70])
def test_neighbours_are_of_many_lengths_but_no_more_than_fit(lengths: list[int]) -> None:
    rows = choose_neighbours(lengths)
    assert len(rows) == 65
    fit = [n for n in lengths if 65 * n <= MOST_NEIGHBOUR_TOKENS]
    assert {lengths[i] for i in (rows[0], rows[-1])} == ({min(fit), max(fit)} if fit else {min(lengths)})
    assert len(set(rows)) == max(1, min(65, len(fit)))


def odd(report: ParityReport) -> ParityReport:
    (task,) = report.tasks
    flips = [{"row": 4, "expected": "<i>$_$", "got": "b & c", "margin": 0.25}]
    record = msgspec.to_builtins(task.alone) | {"flips": flips}
    alone = msgspec.convert(record, type(task.alone))
    task = msgspec.structs.replace(task, name="o<dd", alone=alone, fan_out=task.padded_left)
    return msgspec.structs.replace(report, bundle="<b>$x^$</b>", precision="int8", tasks=[*report.tasks, task])


def test_the_page(llama_bundle: Path) -> None:
    report = odd(ParityReport.read(llama_bundle))
    html = page(report).decode()
    assert html.count("<svg") == 2 * len(report.tasks) == 4
    assert "&lt;b&gt;$x^$&lt;/b&gt;" in html
    assert "&lt;i&gt;$_$" in html
    assert "<i>" not in html
    assert "in int8," in html
    assert "o&lt;dd: largest Δ" in html
    assert html.count("all tasks in one row") == 1
    assert "1 label differs" in html
    assert not [mark for mark in ("<script", "<link", "<img", "src=") if mark in html]


def test_inspect_writes_the_page(llama_bundle: Path, llama_run: Path, tmp_path: Path) -> None:
    """Once, unless it is forced; from parity.json of this format, and only if there is one."""
    out = tmp_path / "parity.html"
    assert ptexport("inspect", llama_bundle, "--html", out).returncode == 0
    made = out.read_bytes()
    assert made == page(ParityReport.read(llama_bundle))
    assert ptexport("inspect", llama_bundle, "--html", out, "--force").returncode == 0
    other = Path(shutil.copytree(llama_bundle, tmp_path / "other"))
    for content, message in (
        (b'{"format": 1}', "got format 1, need 2; export again with this version"),
        (b'{"format": 2}', "not what an export writes (Object missing required field"),
        (b"{", "cannot be read (Input data was truncated); export again"),
        (None, "missing, need the comparison with Transformers; export again"),
    ):
        (other / "parity.json").unlink(missing_ok=True)
        if content is not None:
            (other / "parity.json").write_bytes(content)
        done = ptexport("inspect", other, "--html", tmp_path / "new.html")
        assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (1, 1, True), done.stderr
        with pytest.raises(BundleError):
            ParityReport.read(other)
    for arguments, code, message in (
        ((llama_bundle, "--html", out), 1, "exists already; choose another name, or replace it with --force"),
        ((llama_bundle, "--html", tmp_path / "none" / "p.html"), 1, "none: not a folder"),
        ((llama_run, "--html", tmp_path / "p.html"), 2, "--html needs a bundle; FOLDER is not one."),
    ):
        done = ptexport("inspect", *arguments)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "parity.html"]
