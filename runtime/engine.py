"""Texts -> ids -> logits -> predictions; knows batching and threads, nothing of how the graph was made."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ptexport.runtime.batches import batches, logits_of, score
from ptexport.runtime.bundle import TOKENIZER, Bundle
from ptexport.runtime.chunks import Work, at_once, in_chunks, in_slices
from ptexport.runtime.errors import DataError
from ptexport.runtime.golden import check_golden, golden_texts, tolerance_of
from ptexport.runtime.graph import Execution, Graph
from ptexport.runtime.info import EngineInfo
from ptexport.runtime.manifest import Manifest
from ptexport.runtime.opened import Opened
from ptexport.runtime.predictions import Prediction, predictions
from ptexport.runtime.rows import check_choices
from ptexport.runtime.tensorrt import Build
from ptexport.runtime.tokens import Text, TextEncoder

OPEN_TOP_K = 5
"""Labels whose probabilities are given where every word of the vocabulary is one."""


class Engine:
    """A bundle, opened. Answers do not depend on how texts are batched beyond rounding (about 1e-5 of a logit).

    Thread-safe. It is of the process that opened it: in one forked from that, every method that answers raises
    EngineError, as it does once the engine was closed. As a context manager it closes itself.
    """

    def __init__(self, bundle: Bundle, opened: Opened[TextEncoder]) -> None:
        self._bundle = bundle
        self._opened = opened

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        provider: str = "auto",
        device: int = 0,
        threads: int | None = None,
        cuda_graph: bool = False,
        build: Build = "allowed",
        require_signature: str | Path | None = None,
    ) -> "Engine":
        """Verify a bundle, load it, and compare its golden rows with what the untouched model answered.

        Engines of bundles of one backbone share a session, which is freed with the last of them.

        Args:
            path: the bundle's folder.
            provider: "auto" (CUDA where it runs the graph, else the CPU; `info.degraded` and the log say why), "cpu",
                "cuda", "tensorrt", or ONNX Runtime's own name of another execution provider. What is named is what
                runs, or this raises.
            device: number of the GPU.
            threads: CPUs to use; None: those this process may use.
            cuda_graph: record what each shape of batch runs on the GPU, and play it back: less work for the CPU, more
                memory on the GPU, one call at a time. The whole graph must run on the GPU, or this raises.
            build: whether TensorRT may build an engine now, for minutes; "never": raise if `ptexport warmup` did not.
            require_signature: file with the public key that the bundle must be signed with; None: it need not be.

        Raises:
            BundleError: the folder is not what its manifest says (checked before ONNX Runtime sees a byte), or its
                golden rows are answered otherwise here.
            SignatureError: it is not signed with that key; a BundleError too.
            ProviderError: the provider does not run the graph: a library is missing, or the device, or TensorRT's
                engine.
            MissingExtraError: ONNX Runtime is not installed, or model-signing, where a signature is asked for.
        """
        execution = Execution(asked=provider, device=device, threads=threads, cuda_graph=cuda_graph, build=build)
        bundle = Bundle.open(Path(path), require_signature=require_signature)
        manifest, labels = bundle.manifest, bundle.labels

        def encoder() -> TextEncoder:
            tokenizer_json = (bundle.path / TOKENIZER).read_text(encoding="utf-8")
            return TextEncoder.from_json(tokenizer_json, fields=manifest.fields)

        def prove(encoder: TextEncoder, graph: Graph) -> float:
            logits = logits_of(graph, encoder.encode(golden_texts(manifest.golden)), (len(labels),))
            tolerance = tolerance_of(manifest.parity, graph.provider)
            return check_golden(manifest.golden, labels, logits, tolerance, str(bundle.path))

        opened = Opened.open(bundle, execution, max_length=manifest.max_length, encoders=encoder, prove=prove)
        return cls(bundle, opened)

    def close(self) -> None:
        """Free the tokenizer and, with the last engine of its backbone, the session.

        Calls that have begun are answered; after them the memory is free. What the bundle says of itself stays.
        """
        self._opened.close()

    def __enter__(self) -> Self:
        self._opened.get()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def warm_up(self) -> None:
        """Run every shape of batch once, so that no call is the first of its shape; on the CPU there is none to run."""
        self._opened.get().graph.warm_up()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def info(self) -> EngineInfo:
        """What runs where, as long as it is open."""
        return self._opened.info()

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
        _check(texts, top_k)
        return self._predict(texts, 0, top_k)

    def predict_iter(self, texts: Iterable[Text], *, top_k: int | None = None) -> Iterator[Prediction]:
        """Label texts as they come, in order and constant memory.

        Lazy: nothing is read before the first prediction is asked for; then `chunks.CHUNK_TEXTS` texts are read,
        answered together and given out, and the next read. A feed that trickles is answered sooner by `predict`.

        Args:
            texts: any iterable, read once; each as `predict` takes it.
            top_k: as `predict` takes it.

        Raises:
            DataError: a text is not as `predict` takes it (says which, counted from 0); those of its chunk have no
                answers.
        """
        _check(texts, top_k, once=True)
        return in_chunks(lambda some, first: self._predict(some, first, top_k), iter(texts))

    async def predict_async(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[Prediction]:
        """Label texts as `predict` does, in a thread of the engine's own, so that the event loop goes on.

        All its callers share that thread, in turns of one batch, which on a CPU has at most `buckets.CPU_BATCH_TOKENS`
        tokens, padding counted, or one text. Cancelled, no more than the turn that has begun is computed.

        Args:
            texts: as `predict` takes them.
            top_k: as `predict` takes it.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: as `predict`.
        """
        _check(texts, top_k)
        turns = self._opened.get().turns
        return await turns.do(in_slices(lambda some, first: self._predicting(some, first, top_k), [*texts]))

    def _predict(self, texts: Sequence[Text], first: int, top_k: int | None) -> list[Prediction]:
        return at_once(self._predicting(texts, first, top_k))

    def _predicting(self, texts: Sequence[Text], first: int, top_k: int | None) -> Work[list[Prediction]]:
        if top_k is None and self.manifest.labels is None:
            top_k = OPEN_TOP_K
        loaded = self._opened.get()
        encodings = loaded.encoders.encode(texts, first=first)
        answers: dict[int, Prediction] = {}
        for rows in batches([len(encoding) for encoding in encodings], loaded.graph.batch_tokens):
            if answers:
                yield
            logits = score(loaded.graph, [encodings[row] for row in rows])
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
        _check(rows, top_k)
        return self._choose(rows, 0, top_k)

    def choose_iter(
        self, rows: Iterable[tuple[str, Sequence[str]]], *, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Choose as `choose` does for rows as they come, as `predict_iter` predicts."""
        _check(rows, top_k, once=True)
        return in_chunks(lambda some, first: self._choose(some, first, top_k), iter(rows))

    def _choose(self, rows: Sequence[tuple[str, Sequence[str]]], first: int, top_k: int | None) -> list[Prediction]:
        if "choice" not in self.manifest.fields:
            raise DataError("choose: the bundle's template has no {choice}; use predict")
        for number, row in enumerate(rows, first):
            if not isinstance(row, list | tuple) or len(row) != 2 or not isinstance(row[0], str):
                raise DataError(f"text {number}: need a text and its choices; write choose([(text, [choice, choice])])")
        given = [check_choices(choices, f"text {number}") for number, (_, choices) in enumerate(rows, first)]
        pairs = [(text, choice) for (text, _), choices in zip(rows, given, strict=True) for choice in choices]
        loaded = self._opened.get()
        encodings = loaded.encoders.encode(pairs)
        logits = logits_of(loaded.graph, encodings, (len(self.labels),))
        scores: NDArray[np.float32] = logits[:, 0] - logits[:, 1]
        answers: list[Prediction] = []
        end = 0
        for choices in given:
            start, end = end, end + len(choices)
            truncated = any(encoding.overflowing for encoding in encodings[start:end])
            answers += predictions(scores[None, start:end], choices, None, [truncated], top_k=top_k)
        return answers

    def logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Score texts, as `predict` does; float32 [texts, labels] before the softmax."""
        _check(texts)
        loaded = self._opened.get()
        return logits_of(loaded.graph, loaded.encoders.encode(texts), (len(self.labels),))


def _check(texts: object, top_k: object = None, *, once: bool = False) -> None:
    """Refuse what is no list of texts, or with `once` no iterable, and would be taken for one."""
    if isinstance(texts, str | bytes | Mapping):
        got = "one string" if isinstance(texts, str) else type(texts).__name__
        raise DataError(f"texts: got {got}, need a list of texts; write [text]")
    if not once and not hasattr(texts, "__len__"):
        raise DataError(f"texts: got {type(texts).__name__}, need a list of texts; make one, or use predict_iter")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise DataError(f"top_k: got {top_k!r}, need a whole number of at least 1; leave it out for all labels")
