"""A bundle of many tasks -> one session that answers any of them; knows templates and segments, nothing of graphs.

templates.json  what a task's tokenizer has of its own: `{"tasks": {name: …}, "all": … or null}`; the vocabulary, with
                every task's virtual tokens, is in tokenizer.json once.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ptexport.runtime.batches import logits_of
from ptexport.runtime.bundle import TEMPLATES, TOKENIZER, TasksBundle
from ptexport.runtime.chunks import in_chunks
from ptexport.runtime.errors import BundleError, DataError, reason
from ptexport.runtime.golden import check_golden, golden_texts, tolerance_of
from ptexport.runtime.graph import Execution, Graph
from ptexport.runtime.info import EngineInfo
from ptexport.runtime.manifest import TaskEntry, TasksManifest
from ptexport.runtime.opened import Loaded, Opened
from ptexport.runtime.predictions import Prediction, predictions
from ptexport.runtime.tensorrt import Build
from ptexport.runtime.tokens import Text, TextEncoder


class TaskEncoders:
    """The tokenizers of all tasks on one vocabulary, which is in memory once.

    Attributes:
        of_task: by name, in the order of the graph's output.
        max_length: most ids of a row.
        of_all: a text and after it every task's tokens; None: a text must be read once per task.
    """

    def __init__(self, tokenizer_json: str, templates: dict[str, Any], tasks: Sequence[TaskEntry]) -> None:
        shared = Tokenizer.from_str(tokenizer_json)
        bare = {**json.loads(tokenizer_json), "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}

        def encoder(template: dict[str, Any], fields: Sequence[str]) -> TextEncoder:
            tokenizer = Tokenizer.from_str(json.dumps(bare | template))
            tokenizer.model = shared.model  # shared, not copied
            for _, token in sorted(shared.get_added_tokens_decoder().items()):
                (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
            return TextEncoder(tokenizer, fields=fields)

        self.of_task = {task.name: encoder(templates["tasks"][task.name], task.fields) for task in tasks}
        self.of_all = None if templates["all"] is None else encoder(templates["all"], tasks[0].fields)
        used = [*templates["tasks"].values(), *([] if self.of_all is None else [templates["all"]])]
        self.max_length = max(template["truncation"]["max_length"] for template in used)


class TaskEngine:
    """A bundle of many tasks, opened as one session. Answers are those of a bundle of each task alone.

    Threads, processes and closing are as `Engine` has them.
    """

    def __init__(self, manifest: TasksManifest, opened: Opened[TaskEncoders]) -> None:
        self.manifest = manifest
        self._opened = opened
        self._numbers = {task.name: number for number, task in enumerate(manifest.tasks)}

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
    ) -> "TaskEngine":
        """Verify a bundle, load it, and compare each task's golden rows with what the untouched model answered.

        Takes what `Engine.open` does.

        Raises:
            BundleError: the folder is not what its manifest says, holds one task only, or answers otherwise here.
            SignatureError, ProviderError, MissingExtraError: as `Engine.open`.
        """
        execution = Execution(asked=provider, device=device, threads=threads, cuda_graph=cuda_graph, build=build)
        bundle = TasksBundle.open(Path(path), require_signature=require_signature)
        manifest = bundle.manifest
        tokenizer, templates = ((bundle.path / name).read_text(encoding="utf-8") for name in (TOKENIZER, TEMPLATES))
        try:
            encoders = TaskEncoders(tokenizer, json.loads(templates), manifest.tasks)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise BundleError(
                f"{bundle.path / TEMPLATES}: not what an export writes ({reason(e)}); export again"
            ) from e

        opened = Opened.open(
            bundle,
            execution,
            max_length=encoders.max_length,
            encoders=lambda: encoders,
            prove=partial(_prove, manifest, str(bundle.path)),
            share=False,
        )
        return cls(manifest, opened)

    def close(self) -> None:
        """Free the tokenizers and the session, as `Engine.close` does."""
        self._opened.close()

    def __enter__(self) -> Self:
        self._opened.get()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def warm_up(self) -> None:
        """Run every shape of batch once, as `Engine.warm_up` does."""
        self._opened.get().graph.warm_up()

    @property
    def info(self) -> EngineInfo:
        """What runs where, as long as it is open."""
        return self._opened.info()

    def predict(self, texts: Sequence[Text], *, task: str | Sequence[str]) -> list[Prediction]:
        """Label texts, each for a task; those of different tasks share batches.

        Args:
            texts: texts, or pairs where the task takes two.
            task: its name, or one name per text.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: a text is not what its task takes, or a task is unknown.
        """
        names = [task] * len(texts) if isinstance(task, str) else list(task)
        if isinstance(texts, str) or len(texts) != len(names):
            raise DataError(
                f"predict: got {len(texts)} texts and {len(names)} tasks; give a list, and one task or as many"
            )
        return self._predict(self._opened.get(), texts, names)

    def predict_iter(self, texts: Iterable[Text], *, task: str) -> Iterator[Prediction]:
        """Label texts for a task as they come, in order and constant memory, as `Engine.predict_iter` does."""
        if isinstance(texts, str):
            raise DataError("predict_iter: got one string, need an iterable of texts; write predict_iter([text])")
        return in_chunks(
            lambda some, first: self._predict(self._opened.get(), some, [task] * len(some), first), iter(texts)
        )

    def predict_all(self, texts: Sequence[Text]) -> list[dict[str, Prediction]]:
        """Label texts for every task, each text read once where the bundle can (`manifest.fan_out`).

        A text too long for one of the tasks is read once per task, so that each cuts it where it would alone.

        Returns:
            One prediction per task and text, by the task's name.

        Raises:
            DataError: a text is not what a task takes.
        """
        if isinstance(texts, str):
            raise DataError("predict_all: got one string, need a list of texts; write predict_all([text])")
        loaded = self._opened.get()
        if loaded.encoders.of_all is None:
            return self._one_by_one(loaded, texts)
        encodings = loaded.encoders.of_all.encode(texts)
        whole = [row for row, encoding in enumerate(encodings) if not encoding.overflowing]
        cut = [row for row, encoding in enumerate(encodings) if encoding.overflowing]
        answers: dict[int, dict[str, Prediction]] = {}
        for row, logits in zip(
            whole, _logits(self.manifest, loaded.graph, [encodings[row] for row in whole]), strict=True
        ):
            answers[row] = {
                name: self._prediction(number, logits[number], encodings[row]) for name, number in self._numbers.items()
            }
        answers |= dict(zip(cut, self._one_by_one(loaded, [texts[row] for row in cut]), strict=True))
        return [answers[row] for row in range(len(encodings))]

    def _one_by_one(self, loaded: Loaded[TaskEncoders], texts: Sequence[Text]) -> list[dict[str, Prediction]]:
        """Label texts for every task, each read once per task."""
        names = list(self._numbers)
        asked = self._predict(loaded, [text for text in texts for _ in names], names * len(texts))
        return [dict(zip(names, asked[i : i + len(names)], strict=True)) for i in range(0, len(asked), len(names))]

    def _predict(
        self, loaded: Loaded[TaskEncoders], texts: Sequence[Text], names: Sequence[str], first: int = 0
    ) -> list[Prediction]:
        encodings: dict[int, Encoding] = {}
        for name in dict.fromkeys(names):
            if name not in self._numbers:
                raise DataError(f"task {name!r}: unknown, need one of {', '.join(self._numbers)}; name one of these")
            rows = [row for row, own in enumerate(names) if own == name]
            encoded = loaded.encoders.of_task[name].encode([texts[row] for row in rows], first=first)
            encodings |= dict(zip(rows, encoded, strict=True))
        in_order = [encodings[row] for row in range(len(names))]
        numbers = [self._numbers[name] for name in names]
        logits = _logits(self.manifest, loaded.graph, in_order)[np.arange(len(names)), numbers]
        return [
            self._prediction(number, row, encoding)
            for number, row, encoding in zip(numbers, logits, in_order, strict=True)
        ]

    def _prediction(self, number: int, logits: NDArray[np.float32], encoding: Encoding) -> Prediction:
        task = self.manifest.tasks[number]
        own = logits[None, : len(task.labels)]
        return predictions(own, task.labels, task.abstain_below, [bool(encoding.overflowing)])[0]


def _logits(manifest: TasksManifest, graph: Graph, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
    """Score encodings for every task; float32 [n, tasks, most labels]."""
    return logits_of(graph, encodings, (len(manifest.tasks), max(len(task.labels) for task in manifest.tasks)))


def _prove(manifest: TasksManifest, where: str, encoders: TaskEncoders, graph: Graph) -> float:
    """Run each task's golden rows."""

    def of_task(number: int, task: TaskEntry) -> float:
        logits = _logits(manifest, graph, encoders.of_task[task.name].encode(golden_texts(task.golden)))
        return check_golden(
            task.golden, task.labels, logits[:, number], tolerance_of(task.parity, graph.provider), where
        )

    return max(of_task(number, task) for number, task in enumerate(manifest.tasks))
