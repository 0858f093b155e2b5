"""Rows -> predictions and their lines of JSON, in constant memory."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.engine import Engine
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import Task
from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.columns import Columns
from ptexport.runtime.rows.row import Row, check_texts


def predict_rows(
    task: Task, rows: Iterable[Row], *, strict: bool = False, top_k: int | None = None
) -> Iterator[tuple[Row, Prediction]]:
    """Predict the labels of rows as they come, in order, `CHUNK_TEXTS` at a time.

    Args:
        task: task of an open bundle.
        rows: rows with the texts that its template takes.
        strict: refuse texts that are longer than the task takes.
        top_k: as in `Engine.predict`.

    Raises:
        DataError: a row is too long for `strict`, or has a text too many or too few (names the row).
    """
    read, predicted = itertools.tee(rows)  # never more than a chunk apart
    checked = (_checked(row, task) for row in read)
    if "choice" in task.entry.fields:
        predictions = task.choose_iter(((row.text, row.choices or ()) for row in checked), top_k=top_k)
    else:
        predictions = task.predict_iter((row.texts for row in checked), top_k=top_k)
    for prediction, row in zip(predictions, predicted, strict=True):
        if strict and prediction.truncated:
            raise too_long(row, task)
        yield row, prediction


def predict_rows_of(
    engine: Engine, rows: Iterable[Row], name: str | None, *, strict: bool = False, top_k: int | None = None
) -> Iterator[tuple[Row, dict[str, Prediction]]]:
    """Predict the labels of rows for one task or for all of them, as they come.

    Args:
        engine: the open bundle.
        rows: rows with the texts that the tasks take.
        name: name of a task; `ALL`: every task; None: the only one.
        strict: as in `predict_rows`.
        top_k: as in `predict_rows`.

    Returns:
        Each row with its predictions by the task's name.

    Raises:
        DataError: as in `predict_rows`; or a task is a multiple choice, which cannot be predicted with others.
    """
    if name != ALL or len(engine.tasks) == 1:
        task = engine.task(None if name == ALL else name)
        for row, prediction in predict_rows(task, rows, strict=strict, top_k=top_k):
            yield row, {task.entry.name: prediction}
        return
    for task in engine.tasks.values():
        if "choice" in task.entry.fields:
            raise DataError(
                f"task all: got the multiple choice {task.entry.name}, which is predicted alone; name one task"
            )
    read, predicted = itertools.tee(rows)  # never more than a chunk apart
    checked = (_checked(row, *engine.tasks.values()) for row in read)
    predictions = engine.predict_all_iter((row.texts for row in checked), top_k=top_k)
    for by_task, row in zip(predictions, predicted, strict=True):
        for task_name, prediction in by_task.items():
            if strict and prediction.truncated:
                raise too_long(row, engine.task(task_name))
        yield row, by_task


def columns_of(tasks: Iterable[Task]) -> Columns:
    """Return the columns that tasks read from a file.

    Raises:
        DataError: two tasks read different columns.
    """
    entries = [task.entry for task in tasks]
    different = next((entry for entry in entries if entry.columns != entries[0].columns), None)
    if different is not None:
        raise DataError(
            f"task all: {entries[0].name} has {entries[0].columns.describe()}, {different.name} has "
            f"{different.columns.describe()}; name one task, or say what to read with --columns"
        )
    return entries[0].columns


def _checked(row: Row, *tasks: Task) -> Row:
    for task in tasks:
        check_texts(row, task.entry.fields)
    return row


def too_long(row: Row, task: Task) -> DataError:
    """Make the error about a text that `strict` refuses."""
    return DataError(
        f"{row.where}: got a text longer than the {task.entry.max_length} tokens of the bundle; "
        "shorten it, or leave out --strict"
    )


OWN_FIELDS = ("text", "text_b", "choices", "task", "label", "probabilities", "truncated")
"""Fields of a line; columns that a row keeps have other names."""

TRUNCATED = {"truncated": True}
"""Part of the record of a truncated text."""


def json_lines(row: Row, predictions: Mapping[str, Prediction], *, named: bool) -> Iterator[bytes]:
    """Encode a row and its predictions as lines of JSON, one per task.

    Args:
        row: the row.
        predictions: its predictions by the task's name.
        named: whether each line names its task, as it does for bundles of several.
    """
    for start, prediction in zip(line_starts(row, predictions, named=named), predictions.values(), strict=True):
        record: dict[str, object] = {"label": prediction.label, "probabilities": prediction.probabilities}
        if prediction.truncated:
            record |= TRUNCATED
        yield start + msgspec.json.encode(record)[1:] + b"\n"


def line_starts(row: Row, names: Iterable[str], *, named: bool) -> list[bytes]:
    """Encode the start of each line of a row, which depends on the row and the task alone: texts, then columns kept."""
    columns = {"text": row.text, "text_b": row.text_b, "choices": row.choices}
    own: dict[str, object] = {column: value for column, value in columns.items() if value is not None}
    own |= {name: value for name, value in row.kept.items() if name not in OWN_FIELDS}
    return [msgspec.json.encode(own | ({"task": name} if named else {}))[:-1] + b"," for name in names]
