"""One task of an open bundle: texts -> predictions."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.answer import Answer
from ptexport.runtime.engine.batching import Encoded, EncodedRow, logits_of, run_all
from ptexport.runtime.engine.lifetime import Loaded, OpenState
from ptexport.runtime.engine.predictions import Prediction, predictions
from ptexport.runtime.engine.text_encoder import Text, TokenIds, Tokens
from ptexport.runtime.errors import DataError, TooLongError
from ptexport.runtime.rows.row import check_choices, check_texts

OPEN_VOCABULARY_TOP_K = 5
"""Default `top_k` of an open vocabulary, where every word is a label."""

CHUNK_TEXTS = 1024
"""Texts in memory at a time: enough to sort by length, so that batches have little padding."""

_Text = TypeVar("_Text")
_Item = TypeVar("_Item")


class Task:
    """One task of an open bundle; `Engine` has the same methods, with `task=`.

    Attributes:
        entry: its entry in the manifest.
        labels: label names, in the order of the logits.
    """

    def __init__(self, entry: TaskEntry, labels: list[str], number: int, state: OpenState) -> None:
        self.entry = entry
        self.labels = labels
        self._number = number
        self._state = state

    def text_of(self, record: Mapping[str, object]) -> Text:
        """Join the columns of a record into the text or the pair that this task takes, as its training did.

        Args:
            record: values by column, such as a row of `csv.DictReader`.

        Raises:
            DataError: a column is missing, or holds neither a string nor a number.
        """
        row = self.entry.columns.without_label().row(record, "record")
        check_texts(row, self.entry.fields)
        return row.texts

    def predict(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Prediction]:
        """Predict the labels of texts; see `Engine.predict`."""
        check_call(texts, top_k)
        return self._predict(texts, 0, top_k)

    def predict_iter(self, texts: Iterable[Text], *, top_k: int | None = None) -> Iterator[Prediction]:
        """Predict the labels of texts as they come; see `Engine.predict_iter`."""
        check_call(texts, top_k, once=True)
        return in_chunks(lambda some, first: self._predict(some, first, top_k), iter(texts))

    async def predict_async(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Prediction]:
        """Predict the labels of texts among those of other callers; see `Engine.predict_async`."""
        from asyncio import wrap_future  # not loaded by programs that do not await

        return (await wrap_future(self.submit(texts, top_k=top_k))).items

    def submit(
        self,
        texts: Sequence[Text | TokenIds],
        *,
        top_k: int | None = None,
        truncate: bool = True,
        with_logits: bool = False,
        within_s: float | None = None,
    ) -> "Future[Answer[Prediction]]":
        """Have the batcher predict the labels of texts, or of ids that are encoded already.

        Args:
            texts: as `Engine.predict` takes them, or `TokenIds`, all of one kind.
            top_k: as in `Engine.predict`.
            truncate: truncate texts that are too long; False: refuse them.
            with_logits: give the predictions logits too.
            within_s: seconds after which the predictions are of no use; None: any time.

        Raises:
            BusyError: as `Batcher.submit` raises it.
            DataError: `texts` or `top_k` is of another kind. One that does not fit the task is the future's exception.
        """
        check_call(texts, top_k)
        loaded, given = self._state.get(), [*texts]
        decode = DecodeTask(self, top_k, with_logits=with_logits)

        def encode(first: int, until: int) -> Encoded[Prediction]:
            rows = self._tokens(loaded, given[first:until], first, truncate=truncate)
            return Encoded([EncodedRow(tokens, decode) for tokens in rows])

        return loaded.batcher.submit(
            loaded.graph, len(given), encode, size_of=lambda number: size_of(given[number]), within_s=within_s
        )

    def choose(self, rows: Sequence[tuple[str, Sequence[str]]], *, top_k: int | None = None) -> list[Prediction]:
        """Choose one of each text's candidates; see `Engine.choose`."""
        check_call(rows, top_k)
        return self._choose(rows, 0, top_k)

    def choose_iter(
        self, rows: Iterable[tuple[str, Sequence[str]]], *, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Choose one of each text's candidates, for rows as they come."""
        check_call(rows, top_k, once=True)
        return in_chunks(lambda some, first: self._choose(some, first, top_k), iter(rows))

    def logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Compute the logits of texts, float32 [texts, labels]."""
        check_call(texts)
        loaded = self._state.get()
        return self._logits(loaded, self.encode(loaded, texts, range(len(texts))))

    def encode(self, loaded: Loaded, texts: Sequence[Text], numbers: Sequence[int]) -> list[Encoding]:
        """Encode texts; `numbers` are theirs, for messages."""
        return loaded.encoders.of_task[self._number].encode(texts, numbers=numbers)

    def _tokens(
        self, loaded: Loaded, texts: Sequence[Text | TokenIds], first: int, *, truncate: bool
    ) -> Sequence[Tokens]:
        """Encode texts, or check ids; `first` is the number of the first one."""
        numbers = range(first, first + len(texts))
        ids = [text for text in texts if isinstance(text, TokenIds)]
        if ids:
            encoder = loaded.encoders.of_task[self._number]
            for number, row in zip(numbers, ids, strict=True):
                encoder.check_ids(row, f"row {number}", self.entry.max_length)
            return ids
        encodings = self.encode(loaded, [text for text in texts if not isinstance(text, TokenIds)], numbers)
        for number, encoding in zip(numbers, encodings, strict=True):
            if encoding.overflowing and not truncate:
                raise TooLongError(
                    f"text {number}: got more tokens than the {self.entry.max_length} that fit; shorten it, or allow "
                    "to truncate it"
                )
        return encodings

    def _predict(self, texts: Sequence[Text], first: int, top_k: int | None) -> list[Prediction]:
        loaded, decode = self._state.get(), DecodeTask(self, top_k)
        encodings = self.encode(loaded, texts, range(first, first + len(texts)))
        return run_all(loaded.graph, Encoded([EncodedRow(encoding, decode) for encoding in encodings]))

    def predictions(
        self, logits: NDArray[np.float32], rows: Sequence[Tokens], top_k: int | None, *, with_logits: bool = False
    ) -> list[Prediction]:
        """Turn the graph's logits of all tasks, float32 [rows, tasks, most labels], into predictions of this one."""
        if top_k is None and self.entry.labels is None:
            top_k = OPEN_VOCABULARY_TOP_K
        truncated = [bool(row.overflowing) for row in rows]
        own = logits[:, self._number, : len(self.labels)]
        return predictions(own, self.labels, self.entry.abstain_below, truncated, top_k=top_k, with_logits=with_logits)

    def _logits(self, loaded: Loaded, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        rows = [logits[self._number, : len(self.labels)] for logits in logits_of(loaded.graph, encodings)]
        return np.stack(rows) if rows else np.empty((0, len(self.labels)), dtype=np.float32)

    def _choose(self, rows: Sequence[tuple[str, Sequence[str]]], first: int, top_k: int | None) -> list[Prediction]:
        if "choice" not in self.entry.fields:
            raise DataError(f"choose: got task {self.entry.name}, need a template with {{choice}}; use predict")
        for number, row in enumerate(rows, first):
            if not isinstance(row, list | tuple) or len(row) != 2 or not isinstance(row[0], str):
                raise DataError(
                    f"text {number}: got {type(row).__name__}, need a text with its choices; "
                    "write choose([(text, [choice, choice])])"
                )
        given = [check_choices(choices, f"text {number}") for number, (_, choices) in enumerate(rows, first)]
        pairs = [(text, choice) for (text, _), choices in zip(rows, given, strict=True) for choice in choices]
        loaded = self._state.get()
        encodings = self.encode(loaded, pairs, [n for n, choices in enumerate(given, first) for _ in choices])
        logits = self._logits(loaded, encodings)
        scores: NDArray[np.float32] = logits[:, 0] - logits[:, 1]
        chosen: list[Prediction] = []
        end = 0
        for choices in given:
            start, end = end, end + len(choices)
            truncated = any(encoding.overflowing for encoding in encodings[start:end])
            chosen += predictions(scores[None, start:end], choices, None, [truncated], top_k=top_k)
        return chosen


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Logits -> predictions of one task."""

    task: Task
    top_k: int | None
    with_logits: bool = False

    def __call__(self, logits: NDArray[np.float32], rows: Sequence[Tokens]) -> list[Prediction]:
        """Return a prediction per row."""
        return self.task.predictions(logits, rows, self.top_k, with_logits=self.with_logits)


@dataclass(frozen=True, slots=True)
class DecodeTasks:
    """Logits -> predictions of several tasks, by name."""

    tasks: tuple[Task, ...]
    top_k: int | None

    def __call__(self, logits: NDArray[np.float32], rows: Sequence[Tokens]) -> list[dict[str, Prediction]]:
        """Return the predictions of each row."""
        names = [task.entry.name for task in self.tasks]
        of_task = [task.predictions(logits, rows, self.top_k) for task in self.tasks]
        return [dict(zip(names, of_row, strict=True)) for of_row in zip(*of_task, strict=True)]


def encode_for_all(
    loaded: Loaded, tasks: Sequence[Task], texts: Sequence[Text], first: int, top_k: int | None
) -> Encoded[dict[str, Prediction]]:
    """Encode texts for every task: one row per text, or one per task where a text is too long for that.

    Each task truncates a long text as it would alone. `first` is the number of the first text.
    """
    numbers = range(first, first + len(texts))
    of_all, decode = loaded.encoders.of_all, DecodeTasks(tuple(tasks), top_k)
    encodings: list[Encoding] = [] if of_all is None else of_all.encode(texts, numbers=numbers)
    whole = {row for row, encoding in enumerate(encodings) if not encoding.overflowing}
    cut = [row for row in range(len(texts)) if row not in whole]
    of_task = [
        task.encode(loaded, [texts[row] for row in cut], [numbers[row] for row in cut]) if cut else [] for task in tasks
    ]
    rows: list[EncodedRow] = []
    for row in range(len(texts)):
        if row in whole:
            rows.append(EncodedRow(encodings[row], decode))
        else:
            at = cut.index(row)
            rows += [EncodedRow(own[at], DecodeTask(task, top_k)) for task, own in zip(tasks, of_task, strict=True)]

    def join(items: list[Any]) -> list[dict[str, Prediction]]:
        given = iter(items)
        return [
            next(given) if row in whole else {task.entry.name: next(given) for task in tasks}
            for row in range(len(texts))
        ]

    return Encoded(rows, join)


def size_of(text: object) -> int:
    """Return the characters of a text or pair; 0 for ids, which need no tokenising."""
    if isinstance(text, tuple):
        return sum(map(size_of, text))
    return len(text) if isinstance(text, str) else 0


def in_chunks(predict: Callable[[list[_Text], int], list[_Item]], texts: Iterator[_Text]) -> Iterator[_Item]:
    """Predict texts in order, `CHUNK_TEXTS` at a time; the next chunk is read once the last has been consumed."""
    first = 0
    while chunk := list(itertools.islice(texts, CHUNK_TEXTS)):
        yield from predict(chunk, first)
        first += len(chunk)


def check_call(texts: object, top_k: object = None, *, once: bool = False) -> None:
    """Refuse a string or mapping in place of a list of texts or, with `once`, of an iterable; and a bad `top_k`.

    Raises:
        DataError: `texts` or `top_k` is of another kind.
    """
    if isinstance(texts, str | bytes | Mapping):
        got = "one string" if isinstance(texts, str) else type(texts).__name__
        raise DataError(f"texts: got {got}, need a list of texts; write [text]")
    if not once and not hasattr(texts, "__len__"):
        raise DataError(f"texts: got {type(texts).__name__}, need a list of texts; make one, or use predict_iter")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise DataError(f"top_k: got {top_k!r}, need a whole number of at least 1; leave it out for all labels")
