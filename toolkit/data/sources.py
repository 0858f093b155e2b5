"""A file, a hub data set or the built-in data -> rows, by split."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import DataError, reason
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.runtime.rows.tables import name_class
from ptexport.toolkit.data.cities import load_cities

CITIES = "cities"
_HUB = "hub:"
_SPLITS = (("train", "train"), ("validation", "dev"), ("test", "test"))
"""Names of splits on the hub, and ours."""

Say = Callable[[str], None]


def is_file(source: str) -> bool:
    """Return whether a source is a file, rather than a hub data set or the built-in data."""
    return source != CITIES and not source.startswith(_HUB)


def read_splits(source: str, columns: Columns, say: Say) -> dict[str, list[Row]]:
    """Read all rows of a source.

    Args:
        source: a file (see `read_rows`), `hub:NAME[/CONFIG]` or `cities`.
        columns: which columns are read.
        say: called with a sentence about the source and its columns.

    Returns:
        Rows by split: "train", and of a hub data set also "dev" and "test", if they have labels.

    Raises:
        DataError: the source cannot be read, or a row is not as described (names the line).
        MissingExtraError: it needs a package that is not installed.
    """
    if source == CITIES:
        return {"train": load_cities()}
    if not source.startswith(_HUB):
        return {"train": list(read_rows(Path(source), columns, say=say))}
    splits = {ours: list(rows) for ours, rows in _hub_splits(source, columns, say).items()}
    return {name: rows for name, rows in splits.items() if name == "train" or all(row.label for row in rows)}


def _hub_splits(source: str, columns: Columns, say: Say) -> dict[str, Iterator[Row]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name = source.removeprefix(_HUB)
    owner_and_name, config = (name, None) if name.count("/") < 2 else name.rsplit("/", 1)
    try:
        dataset = load_dataset(owner_and_name, config)
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as e:
        raise DataError(
            f"data {source}: cannot be loaded from the hub ({reason(e)}); check the name, or give a file"
        ) from e
    if "train" not in dataset:
        raise DataError(f"data {source}: has {sorted(dataset)}, need a split 'train'; name another data set")
    say(f"data {source}: splits {', '.join(dataset)}, {columns.describe()}")
    return {ours: _hub_rows(source, part, dataset[part], columns) for part, ours in _SPLITS if part in dataset}


def _hub_rows(source: str, part: str, records: Any, columns: Columns) -> Iterator[Row]:
    from datasets import ClassLabel

    feature = records.features.get(columns.label)
    names = feature.names if isinstance(feature, ClassLabel) and not columns.label_names else None
    for number, record in enumerate(records, 1):
        named = record if names is None else record | {columns.label: name_class(record[columns.label], names)}
        yield columns.row(named, f"{source} {part} row {number}")
