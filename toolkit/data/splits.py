"""Files, hub data sets and the built-in data -> train, dev and test rows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import DataError, reason
from ptexport.runtime.rows import Row, check_label, check_texts, read_rows, row_of
from ptexport.toolkit.data.cities import load_cities

Fractions = tuple[float, float]
"""Shares of the rows for dev and test; the rest is for training."""

_OWN_DATA: Fractions = (0.15, 0.15)
_CITIES: Fractions = (0.10, 0.55)  # few rows to learn from, many to measure on


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Labelled rows for training, for choosing the epoch (dev) and for measuring (test)."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]

    @property
    def parts(self) -> tuple[list[Row], list[Row], list[Row]]:
        """Training, dev and test rows."""
        return self.train, self.dev, self.test

    def pairs(self, labels: Sequence[str]) -> "DataSplits":
        """Convert the multiple choices of every part; see `pairs`."""
        train, dev, test = (pairs(part, labels) for part in self.parts)
        return DataSplits(train=train, dev=dev, test=test)


def pairs(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Convert a multiple choice into one pair per candidate; other rows stay unchanged.

    Args:
        rows: rows, with or without choices.
        labels: labels of the task; the correct candidate gets the first label, the others get the second.
    """
    converted: list[Row] = []
    for row in rows:
        if row.choices is None:
            converted.append(row)
        else:
            converted += [
                replace(row, text_b=choice, choices=None, label=labels[choice != row.label]) for choice in row.choices
            ]
    return converted


def load_data(
    source: str, *, dev: str | None, test: str | None, labels: Sequence[str] | None, fields: Sequence[str], seed: int
) -> DataSplits:
    """Load rows, check them against the task and split them.

    Args:
        source: a JSONL or CSV file, `hub:NAME[/CONFIG]` or `cities`.
        dev: a file of dev rows; None: the validation split on the hub, or a stratified part of `source`.
        test: a file of test rows; None: the test split on the hub, or a stratified part of `source`.
        labels: the declared labels; None: any labels, and the split is not stratified.
        fields: names of the texts that the template takes.
        seed: seed of the split.

    Raises:
        DataError: a part is empty, a label is not declared, or a text is missing or superfluous (names the line).
    """
    splits = _load_splits(source)
    for name, path in (("dev", dev), ("test", test)):
        if path is not None:
            splits[name] = list(read_rows(Path(path)))
    for rows in splits.values():
        for row in rows:
            check_texts(row, fields)
            if labels is not None:
                check_label(row, row.choices or labels, "add it to --labels, or correct the row")
    dev_share, test_share = _CITIES if source == "cities" else _OWN_DATA
    shares = (0.0 if "dev" in splits else dev_share, 0.0 if "test" in splits else test_share)
    by_label = labels is not None and "choice" not in fields  # every multiple choice has its own labels
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
        raise DataError(
            f"data hub:{name}: cannot be loaded from the hub ({reason(e)}); check the name, or give a file"
        ) from e
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
    """Replace a class label by its name; -1 on the hub marks a label that is not published."""
    if names is None:
        return record
    return {**record, "label": None if record["label"] == -1 else names[record["label"]]}


def _split(rows: list[Row], shares: Fractions, seed: int, *, by_label: bool) -> list[list[Row]]:
    """Split rows; copies of one text go into the same part.

    Multiple choices are copies if they have the same text and the same candidates, in any order.

    Args:
        rows: the rows.
        shares: shares of the rows for dev and test.
        seed: seed of the split.
        by_label: stratify, so that every part has the labels in the same proportion.
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
