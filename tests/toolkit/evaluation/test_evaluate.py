"""Figures against scikit-learn's and by hand; the command as it is used."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from commands import ptexport
from links import links_of
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tiny import ROWS

from ptexport.runtime import Engine, Prediction, Task
from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.evaluation.evaluate import Result, check_comparable, contrast, evaluate
from ptexport.toolkit.evaluation.metrics import Evaluation

LABELS = ["a", "b", "c"]


class FixedTask:
    """A task with fixed predictions: each text holds the predicted label and its probability."""

    labels = LABELS
    entry = SimpleNamespace(name="fixed", fields=["text"], labels=LABELS)

    def predict_iter(self, texts: Iterable[str], *, top_k: int | None) -> Iterator[Prediction]:
        assert top_k is None
        for text in texts:
            label, probability = text.split()
            others = {other: (1 - float(probability)) / 2 for other in LABELS}
            yield Prediction(label=label, probabilities={**others, label: float(probability)})


class FixedEngine:
    """An engine of one such task."""

    manifest = SimpleNamespace(name="fixed", digest="0")

    def task(self, name: str | None) -> FixedTask:
        assert name is None
        return FixedTask()


def measure(rows: list[Row]) -> Result:
    return evaluate(cast("Engine", FixedEngine()), rows, lambda done: None)


def row(label: str, answer: str, probability: float) -> Row:
    return Row(where="rows", text=f"{answer} {probability}", label=label)


def test_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    wanted, got = random.integers(0, 2, 3000), random.integers(0, 3, 3000)  # nobody is labelled c
    rows = [row(LABELS[w], LABELS[g], 0.5) for w, g in zip(wanted, got, strict=True)]
    found = measure(rows).evaluation
    assert found.n_rows == 3000
    assert found.accuracy == accuracy_score(wanted, got)
    assert found.f1 == pytest.approx(f1_score(wanted, got, average=None))
    assert found.macro_f1 == pytest.approx(f1_score(wanted, got, average="macro"))
    assert found.confusion == confusion_matrix(wanted, got).tolist()


def test_calibration_by_hand() -> None:
    """Ten answers of 0.9, six right; ten of 0.5, all right: (10 * 0.3 + 10 * 0.5) / 20."""
    rows = [row("a", "a" if i < 6 else "b", 0.9) for i in range(10)] + [row("a", "a", 0.5)] * 10
    found = measure(rows).evaluation
    assert found.calibration_error == pytest.approx(0.4)
    assert [(b.rows, round(b.confidence, 9), b.accuracy) for b in found.reliability if b.rows] == [
        (10, 0.5, 1.0),
        (10, 0.9, 0.6),
    ]
    assert measure([row("a", "a", 1.0)] * 3).evaluation.calibration_error == 0


def test_the_most_confident_mistakes_come_first_and_by_number() -> None:
    rows = [row("a", "b", 0.5), row("a", "a", 0.99), row("b", "c", 0.8), *[row("c", "a", 0.4)] * 20]
    worst = measure(rows).evaluation.worst
    assert [(m.row, m.label, m.answer) for m in worst[:3]] == [(3, "b", "c"), (1, "a", "b"), (4, "c", "a")]
    assert len(worst) == 10


def test_two_side_by_side() -> None:
    first = measure([row("a", "a", 0.5), row("a", "b", 0.5), row("a", "b", 0.5), row("b", "b", 0.5)])
    second = measure([row("a", "a", 0.5), row("a", "a", 0.5), row("a", "c", 0.5), row("b", "a", 0.5)])
    found = contrast(first, second)
    assert (found.agreement, found.only_first_right, found.only_second_right) == (0.25, 1, 1)
    assert found.differing == [2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(where="rows line 1", text="a 1")], "rows line 1: no label, need one of"),
        ([row("d", "a", 1)], r"got label 'd', need one of \['a', 'b', 'c'\]; correct the row"),
    ],
)
def test_rows_that_cannot_be_measured_on(rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(rows)


def test_other_labels() -> None:
    other = SimpleNamespace(labels=["a", "c", "b"])
    with pytest.raises(DataError, match="compare bundles with the same labels in one order"):
        check_comparable([cast("Task", FixedTask()), cast("Task", other)])
    other = SimpleNamespace(labels=LABELS, entry=SimpleNamespace(fields=["text", "text_b"]))
    with pytest.raises(DataError, match="compare bundles that take the same texts"):
        check_comparable([cast("Task", FixedTask()), cast("Task", other)])


def test_labels_that_nobody_has_do_not_count() -> None:
    """As scikit-learn's macro average: the third label is neither a row's nor an answer."""
    found = measure([row("a", "a", 0.9), row("b", "b", 0.9)]).evaluation
    assert (found.macro_f1, found.f1) == (1.0, [1.0, 1.0, 0.0])


def test_the_command(llama_bundle: Path, bert_bundle: Path, rows_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ("evaluate", llama_bundle, bert_bundle, "--data", rows_file, "--html", page)
    done = ptexport(*arguments, "--json", "--log-file", tmp_path / "log")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    engine = Engine.open(llama_bundle)
    right = [p.label == label for p, (_, label) in zip(engine.predict([t for t, _ in ROWS]), ROWS, strict=True)]
    assert [e["bundle"] for e in found["evaluations"]] == ["reviews", "masked-reviews"]
    assert found["evaluations"][0]["accuracy"] == pytest.approx(np.mean(right))
    assert found["evaluations"][0]["latency"]["p50_ms"] > 0
    other = [p.label for p in Engine.open(bert_bundle).predict([t for t, _ in ROWS])]
    same = [p.label == o for p, o in zip(engine.predict([t for t, _ in ROWS]), other, strict=True)]
    assert found["contrast"]["agreement"] == pytest.approx(np.mean(same))
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert events == [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["rows", "done"]
    assert (events[-2]["done"], events[-2]["total"]) == (40, 40)
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4, "two of each bundle"
    assert "most confident mistakes" in html
    assert not links_of(html), "the page needs nothing else"
    assert all(text not in html for text, _ in ROWS)

    done = ptexport(*arguments)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    done = ptexport("evaluate", llama_bundle, "--data", rows_file)
    assert (done.returncode, done.stderr) == (
        0,
        "data rows.csv: CSV with commas, text from 'text', label from 'label'\n",
    )
    assert "macro-F1" in done.stdout


def test_a_label_is_text_on_the_page(tmp_path: Path) -> None:
    from ptexport.toolkit.evaluation.html_page import write_page

    found = measure([row("a", "b", 0.5), row("b", "b", 0.5)]).evaluation
    odd = Evaluation(
        **{
            **{f: getattr(found, f) for f in found.__struct_fields__},
            "bundle": "<b>$x^$</b>",
            "labels": ["<i>$_$", "b & c", "c"],
        }
    )
    write_page(tmp_path / "page.html", [odd], None, data="rows & more.csv", force=False)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;$x^$&lt;/b&gt;" in html
    assert "&lt;i&gt;$_$" in html
    assert "rows &amp; more.csv" in html
    assert "<i>" not in html
