"""Ids -> logits -> predictions, with ONNX Runtime; knows batching and threads, nothing of how the graph was made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.bundle import MODEL, TOKENIZER, Bundle
from ptexport.runtime.errors import DataError
from ptexport.runtime.graph import Graph
from ptexport.runtime.manifest import Manifest
from ptexport.runtime.tokens import Text, TextEncoder

MAX_BATCH_ROWS = 32
MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the most probable label's name; None if the bundle gives none so unsure (`manifest.abstain_below`).
        truncated: whether the text was longer than the bundle takes, and its end was not read.
        probabilities: every label's probability, in the bundle's order; they sum to 1.
    """

    label: str | None
    probabilities: dict[str, float]
    truncated: bool = False

    @property
    def surest(self) -> str:
        """The most probable label's name, sure enough or not."""
        return max(self.probabilities, key=lambda label: self.probabilities[label])


class Engine:
    """A bundle, opened. Answers do not depend on how texts are batched beyond rounding (about 1e-5 of a logit)."""

    def __init__(self, bundle: Bundle, encoder: TextEncoder, graph: Graph) -> None:
        self._bundle = bundle
        self._encoder = encoder
        self._graph = graph

    @classmethod
    def open(cls, path: str | Path, *, threads: int | None = None) -> "Engine":
        """Verify a bundle and load it on the CPU.

        Args:
            path: the bundle's folder.
            threads: CPUs to use; None: those this process may use.

        Raises:
            BundleError: the folder is not what its manifest says; checked before ONNX Runtime sees a byte.
            MissingExtraError: ONNX Runtime is not installed.
        """
        bundle = Bundle.open(Path(path))
        # The graph first: the tokenizer then fits into what loading it has freed (SmolLM2: 1.12 times the weights file
        # at the peak, 1.30 the other way round).
        graph = Graph.open(bundle.path / MODEL, threads=threads)
        tokenizer_json = (bundle.path / TOKENIZER).read_text(encoding="utf-8")
        return cls(bundle, TextEncoder.from_json(tokenizer_json, fields=bundle.manifest.fields), graph)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def labels(self) -> list[str]:
        """The labels' names, in the order of the logits."""
        return self.manifest.labels

    def predict(self, texts: Sequence[Text]) -> list[Prediction]:
        """Label texts.

        Args:
            texts: texts, or pairs of texts where the template takes two; any number, any lengths. A text too long is
                truncated to the bundle's `max_length`.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: a text is not a string, or not one or two as the template needs.
        """
        encodings = self._encode(texts)
        logits = self._logits(encodings)
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        return predictions(logits, self.labels, self.manifest.abstain_below, truncated)

    def logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Score texts, as `predict` does; float32 [texts, labels] before the softmax."""
        return self._logits(self._encode(texts))

    def _encode(self, texts: Sequence[Text]) -> list[Encoding]:
        if isinstance(texts, str):
            raise DataError("predict: got one string, need a list of texts; write predict([text])")
        return self._encoder.encode(texts)

    def _logits(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        logits = np.empty((len(encodings), len(self.labels)), dtype=np.float32)
        for rows in batches([len(encoding) for encoding in encodings]):
            logits[rows] = self._graph.run(self._encoder.pad([encodings[row] for row in rows]))
        return logits


def predictions(
    logits: NDArray[np.float32], labels: Sequence[str], abstain_below: float | None, truncated: Sequence[bool]
) -> list[Prediction]:
    """Turn logits, float32 [rows, labels], into answers."""
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows = (scores / scores.sum(axis=1, keepdims=True)).tolist()
    best = logits.argmax(axis=1).tolist()
    least = abstain_below or 0.0
    return [
        Prediction(
            label=labels[label] if row[label] >= least else None,
            probabilities=dict(zip(labels, row, strict=True)),
            truncated=cut,
        )
        for label, row, cut in zip(best, rows, truncated, strict=True)
    ]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group row numbers, longest first so that the first batch needs the most memory, by rows and padded tokens."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == MAX_BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
