"""Records of requests and batches -> Prometheus and OpenMetrics text.

The sums are kept here, not in the counters of prometheus_client, for two reasons. Triton and text-embeddings-inference
have the same number under several names, so one sum is written as often as needed. And their counters do not end in
`_total`, which prometheus_client appends.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from threading import Lock
from types import TracebackType

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from ptexport.runtime.engine.answer import BatchRecord
from ptexport.runtime.monitoring.metric_names import METRICS
from ptexport.runtime.monitoring.metric_sums import ERRORS, BatchSums, Histogram, ModelSums
from ptexport.runtime.monitoring.records import RequestRecord, ServerState

_METHODS = ("single", "batch")
_Sums = tuple[dict[tuple[str, str], ModelSums], BatchSums, Counter[int]]


class _Pending:
    """Counts a request as pending while it is open."""

    __slots__ = ("_metrics", "_sums")

    def __init__(self, metrics: "Metrics", sums: ModelSums) -> None:
        self._metrics = metrics
        self._sums = sums

    def __enter__(self) -> None:
        with self._metrics._lock:
            self._sums.pending += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._metrics._lock:
            self._sums.pending -= 1
            if self._sums.removed:
                self._metrics._drop_drained()


class Metrics:
    """Metrics of one server. Thread-safe; several servers in one process share nothing.

    Only models that were added become labels. A request for any other counts under empty labels, so callers cannot make
    series.

    Args:
        state: returns what the server is now; called when the metrics are read.
    """

    def __init__(self, state: Callable[[], ServerState]) -> None:
        self._lock = Lock()
        self._models: dict[tuple[str, str], ModelSums] = {}
        self._no_model = ModelSums()
        self._batches = BatchSums()
        self._refused: Counter[int] = Counter()
        self._answered = self._failed = 0
        self._registry = CollectorRegistry()
        self._registry.register(_ServerCollector(self._copy, state))
        self._registry.register(_ThreadCollector())
        ProcessCollector(registry=self._registry)

    def add(self, model: str, version: str) -> None:
        """Begin to count a version of a model, at 0; one that was only just forgotten goes on."""
        with self._lock:
            self._models.setdefault((model, version), ModelSums()).removed = False

    def forget(self, model: str, version: str) -> None:
        """Drop the labels of a version of a model, as soon as no request for it is pending."""
        with self._lock:
            if (model, version) in self._models:
                self._models[model, version].removed = True
                self._drop_drained()

    def pending(self, model: str, version: str) -> _Pending:
        """Return a context in which one more request counts as pending."""
        return _Pending(self, self._models.get((model, version), self._no_model))

    def request(self, record: RequestRecord) -> None:
        """Count a request that is answered."""
        with self._lock:
            self._models.get((record.model, record.version), self._no_model).add(record)
            if record.reason is None:
                self._answered += 1
            else:
                self._failed += 1

    def refused(self, code: int) -> None:
        """Count a request that was refused before it reached a route, by its HTTP status."""
        with self._lock:
            self._refused[code] += 1

    def batch(self, record: BatchRecord) -> None:
        """Count a batch that is done."""
        with self._lock:
            self._batches.add(record)

    def counts(self) -> dict[str, int]:
        """Return how many requests were answered and failed, of models that are gone too, and how many batches ran."""
        with self._lock:
            return {"answered": self._answered, "failed": self._failed, "batches": self._batches.batches}

    def render(self, accept: str | None) -> tuple[str, bytes]:
        """Write all metrics.

        Args:
            accept: the `Accept` header of the request; None: it has none.

        Returns:
            The content type and the body: OpenMetrics if `accept` asks for it, else Prometheus text.
        """
        encode, content_type = choose_encoder(accept or "")
        body = encode(self._registry)
        # Our counters without `_total` have no type in OpenMetrics; in Prometheus text they may be called counters.
        return content_type, body.replace(b" untyped\n", b" counter\n")

    def _copy(self) -> "_Sums":
        with self._lock:
            models = {("", ""): self._no_model, **self._models}
            return {key: sums.copy() for key, sums in models.items()}, self._batches.copy(), self._refused.copy()

    def _drop_drained(self) -> None:
        self._models = {key: sums for key, sums in self._models.items() if sums.pending or not sums.removed}


class _ServerCollector(Collector):
    """Makes the metrics of a server when they are read."""

    def __init__(self, sums: Callable[[], "_Sums"], state: Callable[[], ServerState]) -> None:
        self._sums = sums
        self._state = state

    def describe(self) -> Iterable[Metric]:
        return []  # else prometheus_client collects once when this is registered, before there is a state

    def collect(self) -> Iterator[Metric]:
        models, batches, refused = self._sums()
        yield from _of_models(models)
        yield _plain("ptexport_refused_total", (((str(code),), n) for code, n in refused.items()))
        yield from _of_batches(batches)
        yield from _of_state(self._state())


class _ThreadCollector(Collector):
    """Counts the threads of this process."""

    def collect(self) -> Iterator[Metric]:
        tasks = Path("/proc/self/task")
        if tasks.is_dir():
            yield _plain("process_threads", [((), sum(1 for _ in tasks.iterdir()))])


_Rows = Iterable[tuple[tuple[str, ...], float]]


def _plain(name: str, rows: _Rows) -> Metric:
    """Make a counter or gauge from pairs of label values and value."""
    metric = METRICS[name]
    family: CounterMetricFamily | GaugeMetricFamily | UnknownMetricFamily
    if metric.kind == "gauge":
        family = GaugeMetricFamily(name, metric.meaning, labels=metric.labels)
    elif name.endswith("_total"):
        family = CounterMetricFamily(name, metric.meaning, labels=metric.labels)
    else:
        family = UnknownMetricFamily(name, metric.meaning, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, rows: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    metric = METRICS[name]
    family = HistogramMetricFamily(name, metric.meaning, labels=metric.labels)
    for labels, histogram in rows:
        below, buckets = 0, []
        for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == inf else str(bound), float(below)))
        family.add_metric(labels, buckets, histogram.sum)
    return family


def _of_models(models: dict[tuple[str, str], ModelSums]) -> Iterator[Metric]:
    of = models.items()
    yield _plain("nv_inference_request_success", ((m, sum(s.success)) for m, s in of))
    yield _plain("nv_inference_request_failure", (((*m, r), n) for m, s in of for r, n in s.failure.items()))
    yield _plain("nv_inference_count", ((m, s.texts) for m, s in of))
    for name, part in (
        ("request", "total"),
        ("queue", "queue"),
        ("compute_input", "tokenise"),
        ("compute_infer", "compute"),
    ):
        yield _plain(f"nv_inference_{name}_duration_us", ((m, round(getattr(s, part).sum * 1e6)) for m, s in of))
    yield _plain("nv_inference_pending_request_count", ((m, s.pending) for m, s in of))

    yield _plain("te_request_count", (((*m, _METHODS[i]), n) for m, s in of for i, n in enumerate(s.count)))
    yield _plain("te_request_success", (((*m, _METHODS[i]), n) for m, s in of for i, n in enumerate(s.success)))
    yield _plain("te_request_failure", (((*m, ERRORS[r]), n) for m, s in of for r, n in s.failure.items()))
    yield _plain("te_predict_count", ((m, s.all_texts) for m, s in of))
    yield _plain("te_predict_success", ((m, s.texts) for m, s in of))
    yield _histogram("te_request_duration", ((m, s.total) for m, s in of))
    yield _histogram("te_request_queue_duration", ((m, s.queue) for m, s in of))
    yield _histogram("te_request_tokenization_duration", ((m, s.tokenise) for m, s in of))
    yield _histogram("te_request_inference_duration", ((m, s.compute) for m, s in of))

    yield _plain("ptexport_requests_total", (((*m, p, str(c)), n) for m, s in of for (p, c), n in s.codes.items()))
    yield _plain("ptexport_tokens_total", ((m, s.tokens) for m, s in of))


def _of_batches(sums: BatchSums) -> Iterator[Metric]:
    yield _plain("nv_inference_exec_count", [((), sums.batches)])
    yield _histogram("te_batch_next_size", [((), sums.rows)])
    yield _histogram("te_batch_next_tokens", [((), sums.tokens)])
    yield _plain("ptexport_padding_tokens_total", [((), sums.padding)])
    yield _histogram("ptexport_batch_duration_seconds", [((), sums.compute)])


def _of_state(state: ServerState) -> Iterator[Metric]:
    yield _plain("te_queue_size", [((), state.waiting)])
    yield _plain("ptexport_ready", [((), state.ready)])
    yield _plain("ptexport_models", [((), len(state.models))])
    yield _plain(
        "ptexport_model_info",
        (((m.name, m.version, m.provider, str(m.device), m.precision), 1) for m in state.models),
    )
    yield _plain("ptexport_degraded", (((m.name, m.version), m.degraded is not None) for m in state.models))
