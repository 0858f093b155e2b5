"""Rows -> their labels, and train, dev and test rows."""

import collections
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row, check_label, check_texts
from ptexport.toolkit.data.sources import CITIES, Say, is_file, read_splits

Fractions = tuple[float, float]
"""Shares of the rows for dev and test; the rest is for training."""

_OWN_DATA: Fractions = (0.15, 0.15)
_CITIES: Fractions = (0.10, 0.55)  # few rows to learn from, many to measure on
_LONGEST_LABEL = 80  # characters
_ROWS_PER_LABEL = 2  # at least, on average, unless there are few rows
_FEW_ROWS = 10


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


def count_labels(rows: Sequence[Row], where: str) -> dict[str, int]:
    """Count the rows of each label, most frequent first.

    Args:
        rows: the training rows.
        where: name of the data, for messages.

    Raises:
        DataError: a row has no label; there are fewer than two labels; or the labels look like free text or numbers to
            predict, since they are long or hardly any repeats.
    """
    for row in rows:
        if not row.label:
            raise DataError(
                f"{row.where}: no label, need one in every row; fill it in, or name its column with "
                "--columns label=NAME"
            )
    counts = collections.Counter(row.label or "" for row in rows)
    if len(counts) < 2:
        raise DataError(f"data {where}: every label is {next(iter(counts))!r}, need two or more different ones")
    longest = max(counts, key=len)
    repeated = len(rows) < _FEW_ROWS or len(rows) >= _ROWS_PER_LABEL * len(counts)
    if len(longest) > _LONGEST_LABEL or not repeated:
        raise DataError(
            f"data {where}: got {len(counts)} different labels in {len(rows)} rows, such as {longest[:40]!r}, which "
            "looks like free text; name another column with --columns label=NAME, or list the labels with --labels"
        )
    return dict(counts.most_common())


def split_rows(
    splits: Mapping[str, list[Row]], *, source: str, labels: Sequence[str] | None, fields: Sequence[str], seed: int
) -> DataSplits:
    """Check rows against the task, and split off the parts that are not given.

    Args:
        splits: rows by split, at least "train"; without "dev" or "test", a stratified part of "train" becomes it.
        source: where they come from, as in `read_splits`.
        labels: the labels of the task; None: any labels, and the split is not stratified.
        fields: names of the texts that the template takes.
        seed: seed of the split.

    Raises:
        DataError: a part is empty, a label is not declared, or a text is missing or superfluous (names the line).
    """
    for rows in splits.values():
        for row in rows:
            check_texts(row, fields)
            if labels is not None:
                check_label(row, row.choices or labels, "add it to --labels, or correct the row")
    dev_share, test_share = _CITIES if source == CITIES else _OWN_DATA
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


def read_test_rows(
    source: str, columns: Columns, say: Say, *, fields: Sequence[str], by_label: bool, seed: int
) -> Iterator[Row]:
    """Read the rows to measure on: all rows of a file; otherwise the test rows, or the dev rows if those have no label.

    Of a source with neither, these are the test rows of a training with the same seed.

    Args:
        source: as in `read_splits`.
        columns: which columns are read.
        say: called with a sentence about the source and its columns.
        fields: names of the texts that the template takes.
        by_label: whether the training stratified its split.
        seed: seed of the training's split.

    Raises:
        DataError: the source cannot be read, or a row is not as described (names the line).
        MissingExtraError: it needs a package that is not installed.
    """
    if is_file(source):
        yield from read_rows(Path(source), columns, say=say)
        return
    splits = read_splits(source, columns, say)
    name = next((name for name in ("test", "dev") if name in splits), None)
    if name is None:
        labels = sorted({row.label for row in splits["train"] if row.label}) if by_label else None
        splits = {"test": split_rows(splits, source=source, labels=labels, fields=fields, seed=seed).test}
    rows = splits[name or "test"]
    say(f"data {source}: {len(rows)} {name or 'test'} rows{'' if name else f' of a training with seed {seed}'}")
    yield from rows


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
