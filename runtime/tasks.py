"""A bundle of many tasks -> one session that answers any of them; knows templates and segments, nothing of graphs.

templates.json  what a task's tokenizer has of its own: `{"tasks": {name: …}, "all": … or null}`; the vocabulary, with
                every task's virtual tokens, is in tokenizer.json once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ptexport.runtime.bundle import MODEL, TEMPLATES, TOKENIZER, TasksBundle
from ptexport.runtime.engine import Prediction, batches, predictions
from ptexport.runtime.errors import DataError
from ptexport.runtime.graph import Graph
from ptexport.runtime.manifest import TaskEntry, TasksManifest
from ptexport.runtime.tokens import Text, TextEncoder


class TaskEncoders:
    """The tokenizers of all tasks on one vocabulary, which is in memory once.

    Attributes:
        of_task: by name, in the order of the graph's output.
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


class TaskEngine:
    """A bundle of many tasks, opened as one session. Answers are those of a bundle of each task alone."""

    def __init__(self, manifest: TasksManifest, encoders: TaskEncoders, graph: Graph) -> None:
        self.manifest = manifest
        self._encoders = encoders
        self._graph = graph
        self._numbers = {task.name: number for number, task in enumerate(manifest.tasks)}

    @classmethod
    def open(
        cls, path: str | Path, *, threads: int | None = None, require_signature: str | Path | None = None
    ) -> "TaskEngine":
        """Verify a bundle and load it on the CPU.

        Args:
            path: the bundle's folder.
            threads: CPUs to use; None: those this process may use.
            require_signature: file with the public key that the bundle must be signed with; None: it need not be.

        Raises:
            BundleError: the folder is not what its manifest says, or holds one task only.
            SignatureError: it is not signed with that key; a BundleError too.
            MissingExtraError: ONNX Runtime is not installed, or model-signing, where a signature is asked for.
        """
        bundle = TasksBundle.open(Path(path), require_signature=require_signature)
        graph = Graph.open(bundle.path / MODEL, threads=threads)
        texts = [(bundle.path / name).read_text(encoding="utf-8") for name in (TOKENIZER, TEMPLATES)]
        bundle.check_unchanged()
        tasks = bundle.manifest.tasks
        return cls(bundle.manifest, TaskEncoders(texts[0], json.loads(texts[1]), tasks), graph)

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
        encodings = self._encode(texts, names)
        numbers = [self._numbers[name] for name in names]
        logits = self._logits(encodings)[np.arange(len(names)), numbers]
        return [
            self._prediction(number, row, encoding)
            for number, row, encoding in zip(numbers, logits, encodings, strict=True)
        ]

    def predict_all(self, texts: Sequence[Text]) -> list[dict[str, Prediction]]:
        """Label texts for every task, each text read once where the bundle can (`manifest.fan_out`).

        A text too long for one of the tasks is read once per task, so that each cuts it where it would alone.

        Returns:
            One prediction per task and text, by the task's name.

        Raises:
            DataError: a text is not what a task takes.
        """
        names = list(self._numbers)
        if self._encoders.of_all is None:
            asked = self.predict([text for text in texts for _ in names], task=names * len(texts))
            return [dict(zip(names, asked[i : i + len(names)], strict=True)) for i in range(0, len(asked), len(names))]
        if isinstance(texts, str):
            raise DataError("predict_all: got one string, need a list of texts; write predict_all([text])")
        encodings = self._encoders.of_all.encode(texts)
        whole = [row for row, encoding in enumerate(encodings) if not encoding.overflowing]
        cut = [row for row, encoding in enumerate(encodings) if encoding.overflowing]
        answers: dict[int, dict[str, Prediction]] = {}
        for row, logits in zip(whole, self._logits([encodings[row] for row in whole]), strict=True):
            answers[row] = {
                name: self._prediction(number, logits[number], encodings[row]) for name, number in self._numbers.items()
            }
        asked = self.predict([texts[row] for row in cut for _ in names], task=names * len(cut))
        for i, row in enumerate(cut):
            answers[row] = dict(zip(names, asked[i * len(names) : (i + 1) * len(names)], strict=True))
        return [answers[row] for row in range(len(encodings))]

    def _encode(self, texts: Sequence[Text], names: Sequence[str]) -> list[Encoding]:
        if isinstance(texts, str) or len(texts) != len(names):
            raise DataError(
                f"predict: got {len(texts)} texts and {len(names)} tasks; give a list, and one task or as many"
            )
        encodings: dict[int, Encoding] = {}
        for name in dict.fromkeys(names):
            if name not in self._numbers:
                raise DataError(f"task {name!r}: unknown, need one of {', '.join(self._numbers)}; name one of these")
            rows = [row for row, own in enumerate(names) if own == name]
            encoded = self._encoders.of_task[name].encode([texts[row] for row in rows])
            encodings |= dict(zip(rows, encoded, strict=True))
        return [encodings[row] for row in range(len(names))]

    def _logits(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        most = max(len(task.labels) for task in self.manifest.tasks)
        logits = np.empty((len(encodings), len(self._numbers), most), dtype=np.float32)
        for rows in batches([len(encoding) for encoding in encodings]):
            logits[rows] = self._graph.run(TextEncoder.pad([encodings[row] for row in rows]))
        return logits

    def _prediction(self, number: int, logits: NDArray[np.float32], encoding: Encoding) -> Prediction:
        task = self.manifest.tasks[number]
        own = logits[None, : len(task.labels)]
        return predictions(own, task.labels, task.abstain_below, [bool(encoding.overflowing)])[0]
