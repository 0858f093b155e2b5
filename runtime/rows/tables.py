"""Parquet or Arrow -> records, a batch of rows at a time. Needs the extra `parquet`."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ptexport.runtime.errors import DataError, MissingExtraError
from ptexport.runtime.rows.text import Record, Records

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".arrow", ".feather")


def read_table(path: Path, source: BinaryIO, columns: Collection[str] | None) -> Records:
    """Read records from a file.

    Args:
        path: its name, for messages.
        source: the open file.
        columns: columns that are read, if the file has them; None: all.

    Raises:
        DataError: the file is damaged, or of another kind.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as e:
        raise MissingExtraError(f"{path}: needs the package 'pyarrow'; pip install 'ptexport[parquet]'") from e
    kind = path.suffix[1:].capitalize()
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            file = pyarrow.parquet.ParquetFile(source)
            schema = file.schema_arrow
            batches = file.iter_batches(columns=_present(schema, columns))
        else:
            schema, batches = _open_arrow(source)
    except pa.ArrowException as e:
        raise _damaged(path, e) from e
    return Records(kind=kind, records=_records(path, batches, _present(schema, columns)), classes=_classes(schema))


def _present(schema: "pa.Schema", columns: Collection[str] | None) -> list[str]:
    return [name for name in schema.names if columns is None or name in columns]


def _open_arrow(source: BinaryIO) -> "tuple[pa.Schema, Iterator[pa.RecordBatch]]":
    """Open the file format (Feather), or the streaming format, which `datasets` writes."""
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    return file.schema, (file.get_batch(index) for index in range(file.num_record_batches))


def _records(path: Path, batches: "Iterator[pa.RecordBatch]", columns: list[str]) -> Iterator[Record]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            for record in batch.select(columns).to_pylist():
                number += 1
                yield f"{path.name} row {number}", record
    except pa.ArrowException as e:
        raise _damaged(path, e) from e


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error)[:80]}); write the file again")


def _classes(schema: "pa.Schema") -> dict[str, list[str]]:
    """Return the class names by column that `datasets` wrote into a schema; nothing if it did not."""
    try:
        metadata: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"].items()
        return {name: [str(label) for label in feature["names"]] for name, feature in features if "names" in feature}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
