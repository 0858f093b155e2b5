"""One task of an open bundle: texts -> predictions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.bundle.manifest import TaskEntry
from ptexport.runtime.engine.batching import batches, logits_of, score
from ptexport.runtime.engine.lifetime import Loaded, OpenState
from ptexport.runtime.engine.predictions import Prediction, predictions
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.engine.turns import Work, at_once, in_chunks, in_slices
from ptexport.runtime.errors import DataError
from ptexport.runtime.rows.row import check_choices, check_texts

OPEN_VOCABULARY_TOP_K = 5
"""Default `top_k` of an open vocabulary, where every word is a label."""


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
        return at_once(self.predicting(texts, 0, top_k))

    def predict_iter(self, texts: Iterable[Text], *, top_k: int | None = None) -> Iterator[Prediction]:
        """Predict the labels of texts as they come; see `Engine.predict_iter`."""
        check_call(texts, top_k, once=True)
        return in_chunks(lambda some, first: at_once(self.predicting(some, first, top_k)), iter(texts))

    async def predict_async(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Prediction]:
        """Predict the labels of texts in the engine's own thread; see `Engine.predict_async`."""
        check_call(texts, top_k)
        turns = self._state.get().turns
        return await turns.do(in_slices(lambda some, first: self.predicting(some, first, top_k), [*texts]))

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

    def predicting(self, texts: Sequence[Text], first: int, top_k: int | None) -> Work[list[Prediction]]:
        """Predict the labels of texts, one batch per turn."""
        loaded = self._state.get()
        encodings = self.encode(loaded, texts, range(first, first + len(texts)))
        return predicting(loaded, encodings, [self] * len(texts), top_k)

    def predictions(
        self, logits: NDArray[np.float32], encodings: Sequence[Encoding], top_k: int | None
    ) -> list[Prediction]:
        """Turn the graph's logits of all tasks, float32 [rows, tasks, most labels], into predictions of this one."""
        if top_k is None and self.entry.labels is None:
            top_k = OPEN_VOCABULARY_TOP_K
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        own = logits[:, self._number, : len(self.labels)]
        return predictions(own, self.labels, self.entry.abstain_below, truncated, top_k=top_k)

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


def predicting(
    loaded: Loaded, encodings: Sequence[Encoding], tasks: Sequence[Task], top_k: int | None
) -> Work[list[Prediction]]:
    """Predict labels of encodings, each for its own task, one batch per turn."""
    made: dict[int, Prediction] = {}
    for rows in batches([len(encoding) for encoding in encodings], loaded.graph.batch_tokens):
        if made:
            yield
        logits = score(loaded.graph, [encodings[row] for row in rows])
        for task in dict.fromkeys(tasks[row] for row in rows):
            own = [at for at, row in enumerate(rows) if tasks[row] is task]
            numbers = [rows[at] for at in own]
            made.update(
                zip(numbers, task.predictions(logits[own], [encodings[n] for n in numbers], top_k), strict=True)
            )
    return [made[row] for row in range(len(encodings))]


def predicting_all(
    loaded: Loaded, tasks: Sequence[Task], texts: Sequence[Text], first: int, top_k: int | None
) -> Work[list[dict[str, Prediction]]]:
    """Predict the labels of texts for every task, one batch per turn; `first` is the number of the first text."""
    names = [task.entry.name for task in tasks]
    numbers = range(first, first + len(texts))
    of_all = loaded.encoders.of_all
    encodings = [] if of_all is None else of_all.encode(texts, numbers=numbers)
    made: dict[int, dict[str, Prediction]] = {}
    whole = [row for row, encoding in enumerate(encodings) if not encoding.overflowing]
    for batch in batches([len(encodings[row]) for row in whole], loaded.graph.batch_tokens):
        if made:
            yield
        fitting = [encodings[whole[at]] for at in batch]
        logits = score(loaded.graph, fitting)
        of_task = [task.predictions(logits, fitting, top_k) for task in tasks]
        for at, *of_row in zip(batch, *of_task, strict=True):
            made[whole[at]] = dict(zip(names, of_row, strict=True))
    rows = sorted(set(range(len(texts))) - set(whole))  # each task truncates these as it would alone
    if rows:
        if made:
            yield
        some, their_numbers = [texts[row] for row in rows], [numbers[row] for row in rows]
        own = [encoding for task in tasks for encoding in task.encode(loaded, some, their_numbers)]
        predicted = yield from predicting(loaded, own, [task for task in tasks for _ in rows], top_k)
        for at, row in enumerate(rows):
            made[row] = dict(zip(names, predicted[at :: len(rows)], strict=True))
    return [made[row] for row in range(len(texts))]


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
