"""Parquet or Arrow -> records, a batch of rows at a time. Needs the extra `parquet`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptexport.runtime.errors import DataError, MissingExtraError
from ptexport.runtime.rows.text import Record

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".arrow", ".feather")


def read_table(path: Path) -> Iterator[Record]:
    """Read records from a file.

    Values of a column that `datasets` marked as class labels become the names of the classes; -1 becomes None.

    Raises:
        DataError: the file is damaged, or of another kind.
        MissingExtraError: pyarrow is not installed.
        OSError: the file cannot be read.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as e:
        raise MissingExtraError(f"{path}: needs the package 'pyarrow'; pip install 'ptexport[parquet]'") from e
    number = 0
    try:
        with path.open("rb") as source:
            for batch in _parquet_batches(source) if path.suffix.lower() == ".parquet" else _arrow_batches(source):
                names = _class_names(batch.schema)
                for record in batch.to_pylist():
                    number += 1
                    yield (
                        f"{path.name} row {number}",
                        record | {column: name_class(record[column], classes) for column, classes in names.items()},
                    )
    except pa.ArrowException as e:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} ({str(e)[:80]}); write the file again") from e


def name_class(label: Any, classes: list[str]) -> str | None:
    """Return the name of a class by its number; None for -1, which marks labels that are not published."""
    return None if label is None or label == -1 else classes[label]


def _parquet_batches(source: Any) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet

    yield from pyarrow.parquet.ParquetFile(source).iter_batches()


def _arrow_batches(source: Any) -> "Iterator[pa.RecordBatch]":
    """Read the file format (Feather), or the streaming format, which `datasets` writes."""
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(file.num_record_batches):
        yield file.get_batch(index)


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return the class names by column that `datasets` wrote into a schema."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return {
        name: feature["names"] for name, feature in features.items() if isinstance(feature, dict) and "names" in feature
    }
