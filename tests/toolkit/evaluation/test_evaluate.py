"""Figures against scikit-learn's and by hand; the command as it is used."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from commands import ptexport
from links import links_of
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tiny import ROWS

from ptexport.runtime import Engine, Prediction, Task
from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.evaluation.evaluate import Result, _Seen, check_comparable, contrast, evaluate
from ptexport.toolkit.evaluation.metrics import Evaluation, paired_interval
from ptexport.toolkit.evaluation.wording import verdict

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
    assert "Most confident mistakes" in html
    assert html.count('<svg role="img" aria-label="') == html.count("<figcaption>") == 4
    assert "<h1>masked-reviews " in html, "the verdict is the heading"
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
    assert done.stdout.startswith("reviews has an accuracy of ")


def test_texts_are_shown_only_if_they_are_asked_for(llama_bundle: Path, rows_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    given = ("evaluate", llama_bundle, "--data", rows_file, "--html", page, "--force")
    for option, texts_in in ((), False), (("--show-texts",), True):
        (evaluation,) = json.loads(ptexport(*given, *option, "--json").stdout)["evaluations"]
        html, printed = page.read_text(encoding="utf-8"), ptexport(*given, *option).stdout
        assert evaluation["worst"]
        for mistake in evaluation["worst"]:
            text = ROWS[mistake["row"] - 1][0]
            assert mistake.get("texts") == ([text] if texts_in else None)
            assert (f">{text}</td>" in html, text in printed) == (texts_in, texts_in)


def test_kept_texts_are_those_of_the_listed_mistakes() -> None:
    """Also of pairs and choices, and with equal probabilities."""
    rows = [row("a", "b", 0.5) for _ in range(12)] + [row("b", "c", 0.8), row("a", "a", 0.9)]
    rows[0] = Row(where="rows", text="b 0.5", text_b="other", label="a")
    seen = _Seen({label: number for number, label in enumerate(LABELS)}, keep_texts=True)
    for each in rows:
        label, probability = each.text.split()
        seen.add(each, Prediction(label=label, probabilities={label: float(probability)}))
    assert sorted(-number for _, number, _ in seen.mistakes) == [*range(1, 10), 13]
    assert {-number: texts for _, number, texts in seen.mistakes}[1] == ["b 0.5", "other"]
    found = evaluate(cast("Engine", FixedEngine()), rows[1:], lambda done: None, keep_texts=True).evaluation
    assert [(mistake.row, mistake.texts) for mistake in found.worst[:2]] == [(12, ["c 0.8"]), (1, ["b 0.5"])]
    assert len(found.worst) == 10
    assert all(mistake.texts for mistake in found.worst)


def test_the_verdict_states_a_difference_beyond_its_interval_only() -> None:
    def verdict_of(first: str, second: str) -> str:
        one, two = (measure([row("a", answer, 0.5) for answer in answers]) for answers in (first, second))
        named = [msgspec.structs.replace(r.evaluation, bundle=n, task=n) for r, n in ((one, "old"), (two, "new"))]
        return verdict(named, contrast(one, two))

    assert verdict_of("a" * 50 + "b" * 50, "a" * 90 + "b" * 10) == (
        "new is 40.0 points more accurate than old (95 % interval 29.4 to 49.1 points): 90.0 and 50.0 % of 100 rows."
    )
    assert verdict_of("a" * 90 + "b" * 10, "a" * 50 + "b" * 50) == (
        "new is 40.0 points less accurate than old (95 % interval 29.4 to 49.1 points): 50.0 and 90.0 % of 100 rows."
    )
    assert verdict_of("a" * 90 + "b" * 10, "a" * 91 + "b" * 9) == (
        "new and old show no measurable difference in accuracy (-2.3 to +4.3 points): 91.0 and 90.0 % of 100 rows."
    )
    one = measure([row("a", answer, 0.5) for answer in "aaab"])
    assert verdict([one.evaluation], None) == (
        "fixed has an accuracy of 75.0 % (95 % interval 30.1 to 95.4 %): 3 of 4 rows are predicted correctly."
    )


def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """In 95 % of draws, or a few more. The control: one of 80 % confidence would not."""
    random = np.random.default_rng(0)
    n, gained, lost = 100, 0.10, 0.04
    draws = random.multinomial(n, [gained, lost, 1 - gained - lost], size=4000)
    intervals = [paired_interval(more, less, n) for more, less, _ in draws.tolist()]
    coverage = np.mean([low <= gained - lost <= high for low, high in intervals])
    assert 0.94 < coverage < 0.985
    narrow = [((low + high) / 2, (high - low) / 2 * 1.2816 / 1.96) for low, high in intervals]
    assert np.mean([abs(gained - lost - middle) <= half for middle, half in narrow]) < 0.94


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
