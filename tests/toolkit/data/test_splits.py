"""Rows from files, the hub's layout and the built-in cities; what is refused, and how they are split."""

import collections
import json
from pathlib import Path

import pytest

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.data.sources import read_splits
from ptexport.toolkit.data.splits import DataSplits, read_test_rows, split_rows

LABELS = ["no", "yes"]


def load(source: object, *, fields: tuple[str, ...] = ("text",), seed: int = 0, **given: Path) -> DataSplits:
    splits = read_splits(str(source), Columns(), print)
    splits |= {name: list(read_rows(path)) for name, path in given.items()}
    return split_rows(splits, source=str(source), labels=LABELS, fields=fields, seed=seed)


def write_csv(path: Path, n_rows: int) -> Path:
    lines = [f"text {i},{LABELS[i % 4 == 0]}" for i in range(n_rows)]
    path.write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
    return path


def texts(rows: list[Row]) -> set[str]:
    return {row.text for row in rows}


def test_a_split_is_stratified_seeded_and_loses_nothing(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "rows.csv", 80)
    data = load(source)
    assert [len(data.train), len(data.dev), len(data.test)] == [56, 12, 12]
    for part in (data.dev, data.test):
        assert collections.Counter(row.label for row in part) == {"no": 9, "yes": 3}
    assert texts(data.train) | texts(data.dev) | texts(data.test) == {f"text {i}" for i in range(80)}
    assert load(source) == data
    other = load(source, seed=1)
    assert texts(other.test) != texts(data.test)


def test_named_files_are_used_whole(tmp_path: Path) -> None:
    source, dev, test = (write_csv(tmp_path / f"{n}.csv", n) for n in (20, 8, 4))
    data = load(source, dev=dev, test=test)
    assert [len(data.train), len(data.dev), len(data.test)] == [20, 8, 4]


def test_few_rows_still_reach_every_part(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("text,label\na,no\nb,no\nc,no\nd,yes\ne,yes\nf,yes\n", encoding="utf-8")
    data = load(source)
    assert [sorted(str(row.label) for row in part) for part in (data.train, data.dev, data.test)] == [LABELS] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n", "got no rows"),
        ("text,label\na,no\nb,yes\n", "2 rows leave none for dev; add rows or give --dev"),
        ("text,label\na,maybe\n", r"rows.csv line 2: got label 'maybe', need one of \['no', 'yes'\]; add it"),
        ("text,text_b,label\na,b,no\n", "got a 'text_b', the template takes none"),
    ],
)
def test_rows_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(source)


def test_a_pair_template_needs_both_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no 'text_b', the template takes one"):
        load(write_csv(tmp_path / "rows.csv", 20), fields=("text", "text_b"))


def save_hub_folder(folder: Path, *, secret_test: bool) -> None:
    """Lay files out as a data set on the hub is: one file a split, and a card that names the labels."""
    folder.mkdir()
    for split, n_rows in (("train", 12), ("validation", 6), ("test", 4)):
        labels = [-1 if secret_test and split == "test" else i % 2 for i in range(n_rows)]
        lines = [json.dumps({"text": f"{split} {i}", "label": label}) + "\n" for i, label in enumerate(labels)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': 'no'\n          '1': 'yes'\n---\n",
        encoding="utf-8",
    )


def test_hub_splits_and_class_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is reached: `datasets` reads a folder of the same layout."""
    monkeypatch.chdir(tmp_path)
    save_hub_folder(tmp_path / "open", secret_test=False)
    data = load("hub:open")
    assert [len(data.train), len(data.dev), len(data.test)] == [12, 6, 4]
    assert [row.label for row in data.test] == ["no", "yes", "no", "yes"]
    assert data.dev[2].where == "hub:open validation row 3"


def test_a_hub_test_split_without_labels_is_not_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_hub_folder(tmp_path / "secret", secret_test=True)
    data = load("hub:secret")
    assert len(data.dev) == 6
    assert all(row.text.startswith("train") for row in [*data.train, *data.test])


def test_a_hub_name_that_cannot_be_had() -> None:
    with pytest.raises(DataError, match=r"data hub:nobody/nothing: cannot be loaded from the hub .* or give a file"):
        load("hub:nobody/nothing")


def test_cities_are_balanced_and_unambiguous() -> None:
    rows = load_cities()
    assert collections.Counter(row.label for row in rows) == dict.fromkeys(
        ["Africa", "Asia", "Europe", "North America", "South America", "Oceania"], 100
    )
    assert {"Tokyo", "Nairobi", "Montevideo"} <= texts(rows)
    # London and Paris are in North America too, Santiago in more places than one.
    assert not {"London", "Paris", "Santiago"} & texts(rows)


def test_copies_of_a_text_stay_together(tmp_path: Path) -> None:
    """Else the dev and test rows would be known from training."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{i % 50},{'no' if i % 50 < 25 else 'yes'}\n" for i in range(150)))
    data = load(path)
    parts = [{row.text for row in part} for part in (data.train, data.dev, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(map(len, (data.train, data.dev, data.test))) == 150


@pytest.mark.parametrize("by_label", [True, False])
def test_rows_to_measure_on_are_those_of_the_training(by_label: bool) -> None:
    """Of the built-in data: the test rows of the same seed and split, and no training row."""
    said: list[str] = []
    rows = load_cities()
    labels = sorted({str(row.label) for row in rows}) if by_label else None
    for seed in (0, 3):
        trained = split_rows({"train": rows}, source="cities", labels=labels, fields=["text"], seed=seed)
        measured = read_test_rows("cities", Columns(), said.append, fields=["text"], by_label=by_label, seed=seed)
        assert list(measured) == trained.test
    assert said == [f"data cities: 330 test rows of a training with seed {seed}" for seed in (0, 3)]
