"""A file, a hub data set or the built-in data -> rows, by split."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import DataError, MissingExtraError, reason
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row
from ptexport.toolkit.data.cities import load_cities

CITIES = "cities"
_HUB = "hub:"
_SPLITS = (("train", "train"), ("validation", "dev"), ("test", "test"))
"""Names of splits on the hub, and ours."""

Say = Callable[[str], None]


def is_file(source: str) -> bool:
    """Return whether a source is a file, rather than a hub data set or the built-in data."""
    return source != CITIES and not source.startswith(_HUB)


def source_name(source: str) -> str:
    """Return the name of a source for a page: of a file, without its folder."""
    return Path(source).name if is_file(source) else source


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
    if is_file(source):
        return {"train": list(read_rows(Path(source), columns, say=say))}
    try:
        return {"train": load_cities()} if source == CITIES else _read_hub(source, columns, say)
    except ModuleNotFoundError as e:
        raise MissingExtraError(f"data {source}: needs the package {e.name!r}; pip install 'ptexport[train]'") from e


def _read_hub(source: str, columns: Columns, say: Say) -> dict[str, list[Row]]:
    dataset = _load_hub(source)
    if "train" not in dataset:
        raise DataError(f"data {source}: has {sorted(dataset)}, need a split 'train'; name another data set")
    say(f"data {source}: splits {', '.join(dataset)}, {columns.describe()}")
    splits: dict[str, list[Row]] = {}
    for part, ours in _SPLITS:
        if part in dataset:
            rows = list(_hub_rows(source, part, dataset[part], columns))
            if ours == "train" or all(row.label for row in rows):
                splits[ours] = rows
            else:
                say(f"data {source}: the split {part} has rows without a label, so it is not used")
    return splits


def _load_hub(source: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name = source.removeprefix(_HUB)
    if not name.strip("/"):
        raise DataError(f"data {source}: names no data set; write hub:NAME or hub:OWNER/NAME/CONFIG")
    owner_and_name, config = (name, None) if name.count("/") < 2 else name.rsplit("/", 1)
    try:
        return load_dataset(owner_and_name, config)
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as e:
        raise DataError(
            f"data {source}: cannot be loaded from the hub ({reason(e)}); check the name, or give a file"
        ) from e


def _hub_rows(source: str, part: str, records: Any, columns: Columns) -> Iterator[Row]:
    from datasets import ClassLabel

    classes = {name: feature.names for name, feature in records.features.items() if isinstance(feature, ClassLabel)}
    columns = columns.with_classes(classes)
    for number, record in enumerate(records, 1):
        yield columns.row(record, f"{source} {part} row {number}")
