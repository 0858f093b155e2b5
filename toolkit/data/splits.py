"""Files, hub data sets and cities -> rows for train, dev and test; knows columns and splits, nothing of tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import DataError, reason
from ptexport.runtime.rows import Row, check_label, check_texts, read_rows, row_of
from ptexport.toolkit.data.cities import load_cities

Fractions = tuple[float, float]
"""Shares of the rows that go to dev and test; the rest is for training."""

_OWN_DATA: Fractions = (0.15, 0.15)
_CITIES: Fractions = (0.10, 0.55)  # few rows to learn from, many to measure on


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Rows with labels, all of them declared ones."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]

    def pairs(self, labels: Sequence[str]) -> "DataSplits":
        """Make pairs of every part's multiple choices; see `pairs`."""
        train, dev, test = (pairs(part, labels) for part in (self.train, self.dev, self.test))
        return DataSplits(train=train, dev=dev, test=test)


def pairs(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Make of a multiple choice a pair per candidate, the first label for the right one and the second for others.

    Rows without choices stay as they are.
    """
    made: list[Row] = []
    for row in rows:
        if row.choices is None:
            made.append(row)
        else:
            made += [
                replace(row, text_b=choice, choices=None, label=labels[choice != row.label]) for choice in row.choices
            ]
    return made


def load_data(
    source: str, *, dev: str | None, test: str | None, labels: Sequence[str] | None, fields: Sequence[str], seed: int
) -> DataSplits:
    """Load rows and check them against the task.

    Args:
        source: a JSONL or CSV file, `hub:NAME[/CONFIG]` or `cities`.
        dev: a file, or None: the hub's validation split, or a stratified part of `source`.
        test: likewise.
        labels: the declared labels; None: any, and rows are split without regard to them.
        fields: the texts the template takes.
        seed: of the split.

    Raises:
        DataError: nothing to train on, an undeclared label or a text missing or one too many (says which line).
    """
    splits = _load_splits(source)
    for name, path in (("dev", dev), ("test", test)):
        if path is not None:
            splits[name] = list(read_rows(Path(path)))
    for rows in splits.values():
        for row in rows:
            check_texts(row, fields)
            if labels is not None:
                check_label(row, row.choices or labels, "add it to --labels, or mend the row")
    dev_share, test_share = _CITIES if source == "cities" else _OWN_DATA
    shares = (0.0 if "dev" in splits else dev_share, 0.0 if "test" in splits else test_share)
    by_label = labels is not None and "choice" not in fields  # choices have no label in common
    train_rows, dev_rows, test_rows = _split(splits["train"], shares, seed, by_label=by_label)
    data = DataSplits(train=train_rows, dev=splits.get("dev", dev_rows), test=splits.get("test", test_rows))
    for name, rows in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        if not rows:
            raise DataError(
                f"data {source}: {len(splits['train'])} rows leave none for {name}; add rows or give --{name}"
            )
    return data


def _load_splits(source: str) -> dict[str, list[Row]]:
    if source == "cities":
        return {"train": load_cities()}
    if source.startswith("hub:"):
        return _load_hub(source.removeprefix("hub:"))
    return {"train": list(read_rows(Path(source)))}


def _load_hub(name: str) -> dict[str, list[Row]]:
    from datasets import ClassLabel, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    owner_and_name, config = (name, None) if name.count("/") < 2 else name.rsplit("/", 1)
    try:
        dataset = load_dataset(owner_and_name, config)
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as e:
        raise DataError(f"data hub:{name}: not had from the hub ({reason(e)}); check the name, or give a file") from e
    splits: dict[str, list[Row]] = {}
    for part, ours in (("train", "train"), ("validation", "dev"), ("test", "test")):
        if part in dataset:
            feature = dataset[part].features.get("label")
            names = feature.names if isinstance(feature, ClassLabel) else None
            records = (_named(record, names) for record in dataset[part])
            rows = [row_of(record, f"hub:{name} {part} row {i}") for i, record in enumerate(records, 1)]
            if ours == "train" or all(row.label is not None for row in rows):
                splits[ours] = rows
    if "train" not in splits:
        raise DataError(f"data hub:{name}: has {sorted(dataset)}, need a split 'train'; name another data set")
    return splits


def _named(record: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Give a class label its name; -1 is how the hub marks a label that is kept secret."""
    if names is None:
        return record
    return {**record, "label": None if record["label"] == -1 else names[record["label"]]}


def _split(rows: list[Row], shares: Fractions, seed: int, *, by_label: bool) -> list[list[Row]]:
    """Split rows, if asked for so that every part has the labels in the same proportion; one text, one part.

    Multiple choices of one text and the same candidates, in any order, are one.
    """
    random_ = random.Random(seed)
    copies: dict[tuple[str | tuple[str, str], frozenset[str]], list[Row]] = {}
    for row in rows:
        copies.setdefault((row.texts, frozenset(row.choices or ())), []).append(row)
    parts: list[list[Row]] = [[] for _ in range(len(shares) + 1)]
    for label in sorted({row.label or "" for row in rows}) if by_label else [None]:
        group = [same for same in copies.values() if label in (None, same[0].label)]
        random_.shuffle(group)
        n_label = len(group)
        for part, share in enumerate(shares, 1):
            count = max(round(share * n_label), 1 if share and n_label > 2 else 0)
            parts[part] += [row for same in group[:count] for row in same]
            group = group[count:]
        parts[0] += [row for same in group for row in same]
    return parts
