"""Ids -> logits -> predictions, with ONNX Runtime; knows batching and threads, nothing of how the graph was made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.bundle import MODEL, TOKENIZER, WEIGHTS, Bundle
from ptexport.runtime.errors import BundleError, DataError
from ptexport.runtime.graph import Graph
from ptexport.runtime.manifest import Manifest
from ptexport.runtime.rows import check_choices
from ptexport.runtime.tokens import Text, TextEncoder

MAX_BATCH_ROWS = 32
MAX_BATCH_TOKENS = 4096
OPEN_TOP_K = 5
"""Labels whose probabilities are given where every word of the vocabulary is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the most probable label's name; None if the bundle gives none so unsure (`manifest.abstain_below`).
        truncated: whether the text was longer than the bundle takes, and its end was not read.
        probabilities: every label's probability, in the bundle's order; they sum to 1. Of those asked for, the most
            probable first, where not all are.
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
    def open(
        cls, path: str | Path, *, threads: int | None = None, require_signature: str | Path | None = None
    ) -> "Engine":
        """Verify a bundle and load it on the CPU.

        Engines of bundles of one backbone share a session, which is freed with the last of them.

        Args:
            path: the bundle's folder.
            threads: CPUs to use; None: those this process may use.
            require_signature: file with the public key that the bundle must be signed with; None: it need not be.

        Raises:
            BundleError: the folder is not what its manifest says; checked before ONNX Runtime sees a byte.
            SignatureError: it is not signed with that key; a BundleError too.
            MissingExtraError: ONNX Runtime is not installed, or model-signing, where a signature is asked for.
        """
        bundle = Bundle.open(Path(path), require_signature=require_signature)
        # The graph first: the tokenizer then fits into what loading it has freed (SmolLM2: 1.12 times the weights file
        # at the peak, 1.30 the other way round).
        weights = bundle.manifest.files[WEIGHTS]
        graph = Graph.open(bundle.path / MODEL, threads=threads, weights_sha256=weights.sha256)
        tokenizer_json = (bundle.path / TOKENIZER).read_text(encoding="utf-8")
        bundle.check_unchanged()
        return cls(bundle, TextEncoder.from_json(tokenizer_json, fields=bundle.manifest.fields), graph)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def labels(self) -> list[str]:
        """The labels' names, in the order of the logits."""
        return self._bundle.labels

    def predict(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Prediction]:
        """Label texts.

        Args:
            texts: texts, or pairs of texts where the template takes two; any number, any lengths. A text too long is
                truncated to the bundle's `max_length`.
            top_k: give the probabilities of so many labels, the most probable ones; None: of all, or of `OPEN_TOP_K`
                where answers are open.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: a text is not a string, or not one or two as the template needs.
        """
        _check_top_k(top_k)
        if top_k is None and self.manifest.labels is None:
            top_k = OPEN_TOP_K
        encodings = self._encode(texts)
        answers: dict[int, Prediction] = {}
        for rows, logits in self._scored(encodings):
            truncated = [bool(encodings[row].overflowing) for row in rows]
            made = predictions(logits, self.labels, self.manifest.abstain_below, truncated, top_k=top_k)
            answers.update(zip(rows, made, strict=True))
        return [answers[row] for row in range(len(encodings))]

    def choose(self, rows: Sequence[tuple[str, Sequence[str]]], *, top_k: int | None = None) -> list[Prediction]:
        """Choose one of each text's candidates, where the template has {choice}; `predict` answers pairs one by one.

        A candidate's score is the logit of the first label, that of the right one, less that of the second.

        Args:
            rows: texts, each with its candidates: two or more different strings.
            top_k: as `predict` takes it, of the candidates.

        Returns:
            One prediction per text, in order: the candidate with the highest score as its label, and the softmax of
            the scores over its candidates as probabilities.

        Raises:
            DataError: a row is not as described, or the template has no {choice}.
        """
        _check_top_k(top_k)
        if "choice" not in self.manifest.fields:
            raise DataError("choose: the bundle's template has no {choice}; use predict")
        for number, row in enumerate(rows):
            if not isinstance(row, list | tuple) or len(row) != 2 or not isinstance(row[0], str):
                raise DataError(f"text {number}: need a text and its choices; write choose([(text, [choice, choice])])")
        given = [check_choices(choices, f"text {number}") for number, (_, choices) in enumerate(rows)]
        pairs = [(text, choice) for (text, _), choices in zip(rows, given, strict=True) for choice in choices]
        encodings = self._encode(pairs)
        scores = np.empty(len(encodings), dtype=np.float32)
        for numbers, logits in self._scored(encodings):
            scores[numbers] = logits[:, 0] - logits[:, 1]
        answers: list[Prediction] = []
        end = 0
        for choices in given:
            start, end = end, end + len(choices)
            truncated = any(encoding.overflowing for encoding in encodings[start:end])
            answers += predictions(scores[None, start:end], choices, None, [truncated], top_k=top_k)
        return answers

    def logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Score texts, as `predict` does; float32 [texts, labels] before the softmax."""
        encodings = self._encode(texts)
        logits = np.empty((len(encodings), len(self.labels)), dtype=np.float32)
        for rows, part in self._scored(encodings):
            logits[rows] = part
        return logits

    def check_golden(self) -> float:
        """Run the golden rows of the manifest.

        Returns:
            The largest difference of a logit from the untouched model's.

        Raises:
            BundleError: it is larger than the tolerance of the bundle's parity, or nothing ran the graph before.
        """
        golden, parity = self.manifest.golden, self.manifest.parity
        if parity is None:
            raise BundleError(
                f"{self._bundle.path}: was not run where it was exported, so nothing is known to compare with"
            )
        columns = {label: number for number, label in enumerate(self.labels)}
        logits = self.logits([row.texts[0] if len(row.texts) == 1 else (row.texts[0], row.texts[1]) for row in golden])
        differences = [
            np.abs(got[[columns[label] for label in row.logits]] - np.array(list(row.logits.values())))
            for row, got in zip(golden, logits, strict=True)
        ]
        worst = float(np.max(differences))
        if not worst <= parity.tolerance:
            raise BundleError(
                f"{self._bundle.path}: a logit of its golden rows differs by {worst:.2g}, need at most "
                f"{parity.tolerance:.2g}; "
                "this machine computes otherwise, please report it"
            )
        return worst

    def _encode(self, texts: Sequence[Text]) -> list[Encoding]:
        if isinstance(texts, str):
            raise DataError("predict: got one string, need a list of texts; write predict([text])")
        return self._encoder.encode(texts)

    def _scored(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        for rows in batches([len(encoding) for encoding in encodings]):
            yield rows, self._graph.run(self._encoder.pad([encodings[row] for row in rows]))


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise DataError(f"top_k: got {top_k}, need at least 1; leave it out for all labels")


def predictions(
    logits: NDArray[np.float32],
    labels: Sequence[str],
    abstain_below: float | None,
    truncated: Sequence[bool],
    *,
    top_k: int | None = None,
) -> list[Prediction]:
    """Turn logits, float32 [rows, labels], into answers with the probabilities of all labels or the first few."""
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    least = abstain_below or 0.0
    answers = []
    for row, best, cut in zip(probabilities, logits.argmax(axis=1).tolist(), truncated, strict=True):
        indices = range(len(labels)) if top_k is None else _largest(row, top_k)
        answers.append(
            Prediction(
                label=labels[best] if row[best] >= least else None,
                probabilities={labels[i]: float(row[i]) for i in indices},
                truncated=cut,
            )
        )
    return answers


def _largest(row: NDArray[np.float32], k: int) -> Sequence[int]:
    """Find the numbers of the k largest, largest first."""
    first = np.argpartition(-row, min(k, len(row)) - 1)[:k]
    numbers: list[int] = first[np.argsort(-row[first], kind="stable")].tolist()
    return numbers


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
