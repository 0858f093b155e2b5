"""A request -> its answer."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ptexport.runtime.bundle.manifest import ALL
from ptexport.runtime.engine.answer import Answer, Timing
from ptexport.runtime.engine.batcher import Batcher
from ptexport.runtime.engine.predictions import Prediction
from ptexport.runtime.engine.task import OPEN_VOCABULARY_TOP_K
from ptexport.runtime.engine.text_encoder import Text, TokenIds
from ptexport.runtime.errors import DeadlineError, LargeRequestError, RequestError, UnknownModelError
from ptexport.runtime.monitoring.metrics import Metrics
from ptexport.runtime.serving.answers import all_output_tensors, needs_logits, output_tensors
from ptexport.runtime.serving.call import Call
from ptexport.runtime.serving.metadata import card_of, metadata_of_all, model_metadata
from ptexport.runtime.serving.models import Model, Models
from ptexport.runtime.serving.questions import Options, check_texts, options_of, rows_of
from ptexport.runtime.serving.tensors import InferRequest, InferResponse

_Item = TypeVar("_Item")

MAX_PROBABILITIES = 1 << 18
"""Most probabilities of an answer: some MB of JSON, which take tenths of a second to write."""

ByTask = dict[str, Prediction]
"""Predictions of one text by the names of tasks."""


class Service:
    """Answers requests with the models of a server.

    Args:
        models: the models, which may change at any time.
        batcher: computes the texts of all of them.
        metrics: count the requests that are pending.
    """

    def __init__(self, models: Models, batcher: Batcher, metrics: Metrics) -> None:
        self.models = models
        self._batcher = batcher
        self._metrics = metrics

    def begin(self, call: Call, name: str | None, version: str | None = None) -> None:
        """Begin to answer a request, before its body is decoded.

        Args:
            call: learns the model.
            name: name of the model or task; None: the only one, or said in the body.
            version: version of the model; None: whichever is served.

        Raises:
            UnknownModelError: there is no such model.
            BusyError: no text more can wait, or not long enough for the transport's deadline.
        """
        names = self.models.names()
        if name is not None and self._means_all(name, version):
            call.model = ALL
        elif name is not None or len(names) == 1:
            self._find(names[0] if name is None else name, version, call)
        self._batcher.check_room(call.left_s(None))

    async def infer(self, name: str, version: str | None, request: InferRequest, call: Call) -> InferResponse:
        """Answer an inference request.

        Args:
            name: name of a model, or "all".
            version: version of the model; None: whichever is served.
            request: its tensors and parameters.
            call: learns the model, the number of texts and the timing.

        Raises:
            UnknownModelError: there is no such model.
            RequestError: the request does not fit the model.
            DataError: a text does not fit the model.
            BusyError: too many texts wait.
            DeadlineError: its time is over.
        """
        options = options_of(request.parameters)
        if self._means_all(name, version):
            if options.task is None:
                return await self._infer_all(request, options, call)
            name = options.task
        elif options.task not in (None, name):
            raise RequestError("parameters.task: got another task than the model's, need none; change the path")
        model = self._find(name, version, call)
        entry = model.task.entry
        rows = rows_of(request, entry.fields)
        with_logits = needs_logits(request.outputs, options)
        predictions = await self._ask(model, rows, options, call, with_logits=with_logits)
        outputs = output_tensors(predictions, request.outputs, options, entry)
        return InferResponse(model=name, version=model.version, id=request.id, outputs=outputs)

    async def predict(
        self, texts: Sequence[Text], task: str | None, options: Options, call: Call
    ) -> list[Prediction] | list[ByTask]:
        """Predict the labels of texts.

        Args:
            texts: texts or pairs, as the task takes them.
            task: name of a task; "all": every one; None: the only one.
            options: how to predict.
            call: as in `infer`.

        Raises:
            RequestError: there are several tasks and none is named; or as `infer` raises it.
        """
        if task is not None and self._means_all(task, None):
            check_texts(texts)
            return await self._ask_all(self._all(), texts, options, call)
        names = self.models.names()
        if not names:
            raise UnknownModelError("model: none is loaded yet; send the texts again later, or see the server's log")
        if task is None and len(names) != 1:
            raise RequestError(f"task: got none, need one of {', '.join(names)}; name it")
        model = self._find(names[0] if task is None else task, None, call)
        check_texts(texts)
        return await self._ask(model, texts, options, call, with_logits=options.raw_scores)

    def metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Lay out the metadata of a model.

        Raises:
            UnknownModelError: there is no such model.
        """
        if self._means_all(name, version):
            return metadata_of_all(self._all())
        model = self.models.find(name, version)
        return model_metadata(name, [model.version], model.task.entry, card_of(model))

    def names(self) -> list[str]:
        """Return the names of all models, with "all" where it stands for several."""
        names = self.models.names()
        return [*names, ALL] if ALL not in names and self.models.all() else names

    def fields_of(self, task: str | None) -> Sequence[str]:
        """Return the texts of a row of a task; of "all" and None those of the first one.

        Raises:
            UnknownModelError: there is no such task.
        """
        if task is None or self._means_all(task, None):
            models = self.models.all() or self.models.snapshot()
            return models[0].task.entry.fields if models else ["text"]
        names = self.models.names()
        if task not in names:
            raise UnknownModelError(f"task: got an unknown name, need {' or '.join(map(repr, names))}; correct it")
        return self.models.find(task).task.entry.fields

    def index(self) -> list[dict[str, str]]:
        """List the models as Triton's repository index does."""
        models = self.models.snapshot()
        return [{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in models]

    def _means_all(self, name: str, version: str | None) -> bool:
        return name == ALL and version is None and ALL not in self.models.names()

    def _all(self) -> list[Model]:
        models = self.models.all()
        if not models:
            raise UnknownModelError(
                f"model: got {ALL!r}, need several tasks with the same texts for it; name {self._need()}"
            )
        return models

    def _find(self, name: str, version: str | None, call: Call) -> Model:
        model = self.models.find(name, version)
        call.model, call.version = model.name, model.version
        return model

    def _need(self) -> str:
        return " or ".join(map(repr, self.models.names()))

    async def _infer_all(self, request: InferRequest, options: Options, call: Call) -> InferResponse:
        models = self._all()
        rows = rows_of(request, models[0].task.entry.fields)
        texts = [row for row in rows if not isinstance(row, TokenIds)]
        if len(texts) < len(rows):
            raise RequestError(f"inputs: got ids, need texts for {ALL!r}, since each task has a template; name a model")
        by_text = await self._ask_all(models, texts, options, call)
        entries = {model.name: model.task.entry for model in models}
        outputs = all_output_tensors(by_text, request.outputs, options, entries)
        return InferResponse(model=ALL, version="", id=request.id, outputs=outputs)

    async def _ask(
        self, model: Model, rows: Sequence[Text | TokenIds], options: Options, call: Call, *, with_logits: bool
    ) -> list[Prediction]:
        call.texts = len(rows)
        left_s = call.left_s(options.timeout_s)
        _check_size(len(rows), [model], options)
        with self._metrics.pending(model.name, model.version):
            future = model.task.submit(
                rows, top_k=options.top_k, truncate=options.truncate, with_logits=with_logits, within_s=left_s
            )
            answer = await _within(left_s, future)
        call.tokens, call.timing = answer.tokens, answer.timing
        return answer.items

    async def _ask_all(
        self, models: Sequence[Model], texts: Sequence[Text], options: Options, call: Call
    ) -> list[ByTask]:
        """Ask every task: those of one engine together, in one pass where it can."""
        if options.raw_scores or not options.truncate:
            raise RequestError(f"task {ALL!r}: got raw_scores or truncate, need neither; ask each task by its name")
        call.model, call.texts = ALL, len(texts)
        left_s = call.left_s(options.timeout_s)
        _check_size(len(texts), models, options)
        self._batcher.check_room(left_s, len(texts))
        futures: list[Future[Answer[ByTask]]] = []
        with self._metrics.pending(ALL, ""):
            try:
                # Admitted once, not once for each engine.
                for engine in dict.fromkeys(model.engine for model in models):
                    futures.append(engine.submit_all(texts, top_k=options.top_k, within_s=left_s, always=True))
                answers = await asyncio.gather(*(_within(left_s, future) for future in futures))
            finally:
                for future in futures:  # if one failed
                    future.cancel()
        call.tokens = sum(answer.tokens for answer in answers)
        call.timing = Timing(
            tokenise_s=sum(answer.timing.tokenise_s for answer in answers),
            queue_s=max(answer.timing.queue_s for answer in answers),
            compute_s=sum(answer.timing.compute_s for answer in answers),
        )
        names = {model.name for model in models}
        by_text = zip(*(answer.items for answer in answers), strict=True)
        return [{name: p for part in parts for name, p in part.items() if name in names} for parts in by_text]


def _check_size(n: int, models: Sequence[Model], options: Options) -> None:
    """Check how many probabilities an answer would have.

    Raises:
        LargeRequestError: they are too many.
    """
    each = 0
    for model in models:
        labels = len(model.task.labels)
        all_ = OPEN_VOCABULARY_TOP_K if model.task.entry.labels is None else labels
        each += min(options.top_k or all_, labels)
    if n * each > MAX_PROBABILITIES:
        raise LargeRequestError(
            f"request: got {n} texts with {each} probabilities each, need at most {MAX_PROBABILITIES:,} together; "
            "send fewer texts, or a smaller top_k"
        )


async def _within(seconds: float | None, future: "Future[Answer[_Item]]") -> Answer[_Item]:
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError as e:
        raise DeadlineError.after(seconds or 0.0) from e
