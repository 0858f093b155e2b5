"""The options of an import, and what is common to the checks of all imports; without torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptexport.runtime.errors import CheckpointError, reason
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.read import read_rows
from ptexport.runtime.rows.row import Row, check_texts
from ptexport.toolkit.data.cities import load_cities
from ptexport.toolkit.run.check_rows import choose_check_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Options of one import.

    Attributes:
        source: a folder that `save_pretrained` of PEFT or Transformers wrote; of a classifier, also a hub name.
        out: folder of the run.
        model: for an adapter, alias, folder or hub name of its base model; None: the one that the adapter names.
        labels: names in the order of the outputs, or a file of them; None: those in the model's configuration. For
            CAUSAL_LM, `name=word|word,…`, a file of such lines, or `vocab`.
        template: the template without virtual tokens; None: the text alone. For a classifier, `{text}` or
            `{text} {text_b}`, since its tokenizer adds its own special tokens.
        max_length: maximum tokens per row; None: 512, or fewer if the model takes fewer.
        rows: a file of rows for the parity check; None: the built-in cities.
        columns: columns of `rows`, and of the files that the bundle reads; None: `text`, `text_b` and `label`.
        force: replace an existing run.
    """

    source: str
    out: Path
    model: str | None = None
    labels: str | None = None
    template: str | None = None
    max_length: int | None = None
    rows: Path | None = None
    columns: Columns | None = None
    force: bool = False


def read_check_rows(config: ImportConfig, fields: Sequence[str]) -> list[Row]:
    """Read the rows for the parity check.

    Args:
        config: the options; of the built-in cities, the labels are dropped, which belong to another task.
        fields: texts that the template takes.

    Raises:
        DataError: the file cannot be read, or its rows have other texts.
    """
    if config.rows is None:
        rows = [replace(row, label=None) for row in load_cities()]
    else:
        rows = list(read_rows(config.rows, config.columns))
    rows = choose_check_rows(rows)
    for row in rows:
        check_texts(row, fields)
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: cannot be read ({reason(e)}); save it again") from e
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: got {type(record).__name__}, need an object; save it again")
    return record
