"""A bundle folder -> an Engine that predicts labels for any of its tasks."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptexport.runtime.bundle.folder import MODEL, WEIGHTS, Bundle, check_unchanged
from ptexport.runtime.bundle.manifest import Manifest
from ptexport.runtime.engine.answer import Answer
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.batching import Encoded, EncodedRow, logits_of, run_all
from ptexport.runtime.engine.golden import check_golden_rows
from ptexport.runtime.engine.info import EngineInfo, info_of
from ptexport.runtime.engine.lifetime import OpenState
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import DecodeTask, Task, check_call, encode_for_all, in_chunks, size_of
from ptexport.runtime.engine.task_encoders import TaskEncoders, longest_row
from ptexport.runtime.engine.text_encoder import Text
from ptexport.runtime.errors import DataError, MissingExtraError
from ptexport.runtime.hub.pull import local_folder
from ptexport.runtime.ort.execution import Execution
from ptexport.runtime.ort.tensorrt import Build


class Engine:
    """An open bundle of one or several tasks.

    Predictions do not depend on how texts are batched, beyond rounding (about 1e-5 of a logit). Thread-safe. An engine
    belongs to the process that opened it: in a process forked from that one, and after `close`, methods that predict
    raise EngineError. As a context manager it closes itself.

    Methods take `task`, the name of a task; None: the only one. They raise DataError if there are several tasks.
    """

    def __init__(
        self, bundle: Bundle, state: OpenState, *, golden_max_abs_diff: float = math.nan, base: Bundle | None = None
    ) -> None:
        self._bundle = bundle
        self._base = base or bundle  # the bundle whose folder has the files of the backbone
        self._state = state
        self._golden_max_abs_diff = golden_max_abs_diff
        entries = zip(bundle.manifest.tasks, bundle.labels, strict=True)
        self._tasks = {entry.name: Task(entry, labels, number, state) for number, (entry, labels) in enumerate(entries)}

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        provider: str = "auto",
        device: int | str = 0,
        provider_options: Mapping[str, str] = MappingProxyType({}),
        threads: int | None = None,
        cuda_graph: bool = False,
        build: Build = "allowed",
        require_signature: str | Path | None = None,
        batcher: Batcher | None = None,
    ) -> "Engine":
        """Verify a bundle, load it, and compare its golden rows with the expected logits.

        Engines of bundles of one backbone share a session if they use the same provider and threads, and neither
        TensorRT nor a CUDA graph; the last of them frees it.

        Args:
            path: folder of the bundle, or, as a string, its name on the hub: `hub:OWNER/NAME[@REVISION]`, which is
                downloaded into the cache once.
            provider: execution provider: "auto" (CUDA if it can load the graph, else the CPU; `info.degraded` and the
                log say why), "cpu", "cuda", "tensorrt", a plugin such as "openvino" or "webgpu", whose wheel must be
                installed, or ONNX Runtime's own name of another one. A named provider is the one that runs, or `open`
                raises.
            device: number of the GPU; for a plugin "gpu", "npu", "cpu", or a number in its list, which
                `ptexport doctor` shows.
            provider_options: the provider's own options by name, which come before those that ptexport sets.
            threads: CPUs to use; None: all that this process may use.
            cuda_graph: record a CUDA graph per batch shape and replay it: less CPU work and more GPU memory, one call
                at a time. Raises if the whole graph cannot run on the GPU.
            build: whether TensorRT may build an engine now, which takes minutes; "never": raise unless
                `ptexport warmup` built it before.
            require_signature: PEM file with the public key of the required signature; None: none is required.
            batcher: forms the batches of `predict_async`; engines that share one take turns. None: one of its own.

        Raises:
            BundleError: the folder does not match its manifest (checked before ONNX Runtime reads a byte), or the
                golden rows have other logits here.
            HubError: the bundle cannot be downloaded.
            SignatureError: the bundle is not signed with that key; a BundleError too.
            ProviderError: the provider does not run the graph: a library, the device or TensorRT's engine is missing.
            MissingExtraError: ONNX Runtime, or for a signature model-signing, is not installed.
        """
        execution = Execution(
            provider=provider,
            device=device,
            threads=threads,
            cuda_graph=cuda_graph,
            build=build,
            provider_options=provider_options,
        )
        bundle = Bundle.open(local_folder(path), require_signature=require_signature)
        graph = execution.open(bundle.path / MODEL, bundle.manifest.files, longest_row(bundle), bundle.manifest.engine)
        encoders = TaskEncoders.open(bundle)  # after the graph: they fit into the memory that loading it has freed
        golden_max_abs_diff = check_golden_rows(bundle, encoders, graph, partial(logits_of, graph))
        check_unchanged(bundle)
        return cls(bundle, OpenState(encoders, graph, batcher), golden_max_abs_diff=golden_max_abs_diff)

    def open_pack(self, path: str | Path) -> "Engine":
        """Open the tasks of a pack on this engine's session, tokenizer and batcher, and compare their golden rows.

        No weights are read, and nothing is written. The new engine predicts what the installed bundle would, and works
        on after this one is closed. Other threads may predict meanwhile: golden rows are batches of one text.

        Args:
            path: a file that `ptexport pack` made for this engine's backbone, precision and opset, with one task or
                several as this engine has.

        Raises:
            PackError: the file is not a pack, was changed, or is for another backbone or graph.
            BundleError: this engine's folder was changed since, or the golden rows have other logits here.
            ProviderError: this engine's session cannot be shared: it uses TensorRT or CUDA graphs.
            EngineError: this engine is closed.
            MissingExtraError: safetensors is not installed.
        """
        try:
            # Its packages are of the extras `install` and `serve`.
            from ptexport.runtime.engine.pack_tasks import one_by_one, open_pack_tasks
        except ModuleNotFoundError as e:
            raise MissingExtraError(f"packs need the package {e.name!r}; pip install 'ptexport[install]'") from e
        loaded = self._state.get()
        bundle, encoders, graph = open_pack_tasks(Path(path), self._base, loaded)
        seen = check_golden_rows(bundle, encoders, graph, partial(one_by_one, loaded.batcher, graph))
        state = OpenState(encoders, graph, loaded.batcher)
        return Engine(bundle, state, golden_max_abs_diff=seen, base=self._base)

    def close(self) -> None:
        """Free the tokenizers and, with the last engine of its backbone, the session.

        Memory is freed once running calls have returned. The manifest stays readable.
        """
        self._state.close()

    def __enter__(self) -> Self:
        self._state.get()
        return self

    def __exit__(self, *_: object) -> None:
        self._state.close()

    def warm_up(self) -> None:
        """Run every batch shape once, so that no later call is the first of its shape. No effect on the CPU."""
        self._state.get().graph.warm_up()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle."""
        return self._bundle.manifest

    @property
    def info(self) -> EngineInfo:
        """Provider, placement and versions. Raises EngineError once the engine is closed."""
        return info_of(
            self._state.get().graph,
            golden_max_abs_diff=self._golden_max_abs_diff,
            bundle=self.manifest.digest,
            weights_sha256=self.manifest.files[WEIGHTS].sha256,
        )

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name, in the order of the graph's output. Each has the engine's methods, without `task`."""
        return MappingProxyType(self._tasks)

    @property
    def labels(self) -> list[str]:
        """Label names of the only task, in the order of the logits."""
        return self.task().labels

    def task(self, name: str | None = None) -> Task:
        """Return a task by its name; None: the only one.

        Raises:
            DataError: there is no such task, or there are several and none is named.
        """
        names = ", ".join(self._tasks)
        if name is None:
            if len(self._tasks) > 1:
                raise DataError(f"task: got none, need one of {names}; name it")
            return next(iter(self._tasks.values()))
        if name not in self._tasks:
            raise DataError(f"task {name!r}: unknown, need one of {names}; name one of these")
        return self._tasks[name]

    def predict(
        self, texts: Sequence[Text], *, task: str | Sequence[str] | None = None, top_k: int | None = None
    ) -> list[Prediction]:
        """Predict the labels of texts.

        Args:
            texts: texts, or pairs of texts if the template takes two; any number, any lengths. A text longer than the
                task's `max_length` is truncated.
            task: name of a task, or one name per text; texts of different tasks share batches.
            top_k: number of labels whose probabilities are returned, the most probable first; None: all, or
                `OPEN_VOCABULARY_TOP_K` for an open vocabulary.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: a text is not a string, or not one or two as the template needs; or a task is unknown.
        """
        if task is None or isinstance(task, str):
            return self.task(task).predict(texts, top_k=top_k)
        check_call(texts, top_k)
        if len(texts) != len(task):
            raise DataError(
                f"task: got {len(task)} names and {len(texts)} texts, need as many; give one, or one per text"
            )
        loaded, tasks = self._state.get(), [self.task(name) for name in task]
        encodings: dict[int, Encoding] = {}
        for own in dict.fromkeys(tasks):
            rows = [row for row, its in enumerate(tasks) if its is own]
            encodings.update(zip(rows, own.encode(loaded, [texts[row] for row in rows], rows), strict=True))
        decoded = [EncodedRow(encodings[row], DecodeTask(its, top_k)) for row, its in enumerate(tasks)]
        return run_all(loaded.graph, Encoded(decoded))

    def predict_iter(
        self, texts: Iterable[Text], *, task: str | None = None, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Predict the labels of texts as they come, in order and in constant memory.

        Lazy: the first prediction reads `task.CHUNK_TEXTS` texts and predicts them together; the next texts are read
        when those predictions have been consumed. Use `predict` for texts that arrive slowly.

        Args:
            texts: any iterable, read once; each text as `predict` takes it.
            task: name of the task.
            top_k: as in `predict`.

        Raises:
            DataError: a text is not as `predict` takes it (with its number, from 0); its chunk has no predictions.
        """
        return self.task(task).predict_iter(texts, top_k=top_k)

    async def predict_async(
        self, texts: Sequence[Text], *, task: str | None = None, top_k: int | None = None
    ) -> list[Prediction]:
        """Predict like `predict`, among the texts of all other callers, without blocking the event loop.

        The batcher forms batches of all texts that wait. Callers take turns of one batch, so a few texts wait for one
        batch of many others, not for all of them. Cancellation drops what no batch has taken.

        Args:
            texts: as in `predict`.
            task: name of the task.
            top_k: as in `predict`.

        Returns:
            One prediction per text, in order.

        Raises:
            DataError: as in `predict`.
        """
        return await self.task(task).predict_async(texts, top_k=top_k)

    def predict_all(self, texts: Sequence[Text], *, top_k: int | None = None) -> list[dict[str, Prediction]]:
        """Predict the labels of texts for every task, in one forward pass per text if the bundle can (`fan_out`).

        A text that is too long for one of the tasks has a pass per task, so that each task truncates it as it would
        alone.

        Args:
            texts: as in `predict`; every task must take such texts.
            top_k: as in `predict`.

        Returns:
            Per text, one prediction per task by the task's name.

        Raises:
            DataError: as in `predict`.
        """
        check_call(texts, top_k)
        return self._predict_all(texts, 0, top_k)

    def predict_all_iter(self, texts: Iterable[Text], *, top_k: int | None = None) -> Iterator[dict[str, Prediction]]:
        """Predict like `predict_all`, for texts as they come, in constant memory."""
        check_call(texts, top_k, once=True)
        return in_chunks(lambda some, first: self._predict_all(some, first, top_k), iter(texts))

    async def predict_all_async(
        self, texts: Sequence[Text], *, top_k: int | None = None
    ) -> list[dict[str, Prediction]]:
        """Predict like `predict_all`, among the texts of all other callers as `predict_async` does."""
        from asyncio import wrap_future  # not loaded by programs that do not await

        return (await wrap_future(self.submit_all(texts, top_k=top_k))).items

    def submit_all(
        self, texts: Sequence[Text], *, top_k: int | None = None, within_s: float | None = None, always: bool = False
    ) -> "Future[Answer[dict[str, Prediction]]]":
        """Have the batcher predict the labels of texts for every task; see `Task.submit` and `Batcher.submit`."""
        check_call(texts, top_k)
        loaded, tasks, given = self._state.get(), list(self._tasks.values()), [*texts]

        def encode(first: int, until: int) -> Encoded[dict[str, Prediction]]:
            return encode_for_all(loaded, tasks, given[first:until], first, top_k)

        return loaded.batcher.submit(
            loaded.graph,
            len(given),
            encode,
            size_of=lambda number: size_of(given[number]),
            within_s=within_s,
            always=always,
        )

    def _predict_all(self, texts: Sequence[Text], first: int, top_k: int | None) -> list[dict[str, Prediction]]:
        loaded = self._state.get()
        return run_all(loaded.graph, encode_for_all(loaded, list(self._tasks.values()), texts, first, top_k))

    def choose(
        self, rows: Sequence[tuple[str, Sequence[str]]], *, task: str | None = None, top_k: int | None = None
    ) -> list[Prediction]:
        """Choose one of each text's candidates, for a template with {choice}; `predict` scores pairs one by one.

        A candidate's score is the logit of the first label (right) minus the logit of the second (wrong).

        Args:
            rows: texts with their candidates: two or more different strings each.
            task: name of the task.
            top_k: as in `predict`, of the candidates.

        Returns:
            One prediction per text, in order: the candidate with the highest score as label, and the softmax of the
            scores over the candidates as probabilities.

        Raises:
            DataError: a row is not as described, or the template has no {choice}.
        """
        return self.task(task).choose(rows, top_k=top_k)

    def choose_iter(
        self, rows: Iterable[tuple[str, Sequence[str]]], *, task: str | None = None, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Choose like `choose`, for rows as they come, in constant memory."""
        return self.task(task).choose_iter(rows, top_k=top_k)

    def logits(self, texts: Sequence[Text], *, task: str | None = None) -> NDArray[np.float32]:
        """Compute the logits of texts before the softmax, float32 [texts, labels]."""
        return self.task(task).logits(texts)
